// Sums over the threads that have a row.
#pragma once

// For all lanes of a warp; of both parts, where there are two.
static __device__ __forceinline__ float warp_sum(float value) {
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}
static __device__ __forceinline__ float2 warp_sum(float2 value) {
  for (int distance = 16; distance; distance /= 2) {
    value.x += __shfl_xor_sync(~0u, value.x, distance);
    value.y += __shfl_xor_sync(~0u, value.y, distance);
  }
  return value;
}

// The same for all threads of a block of COUNT; to be called once in a kernel.
template <int COUNT>
static __device__ __forceinline__ float2 block_sum(float2 value) {
  if (COUNT == 32) return warp_sum(value);
  __shared__ float2 of_warp[COUNT / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  float2 sum = make_float2(0, 0);
  for (int warp = 0; warp < COUNT / 32; warp++) {
    sum.x += of_warp[warp].x;
    sum.y += of_warp[warp].y;
  }
  return sum;
}

// A row's sums of differences to one of its values, and of their squares: squares of what lies far from zero would cancel each other out.
static __device__ __forceinline__ void add_difference(float2 &sums, float difference) {
  sums.x += difference;
  sums.y += difference * difference;
}
// Mean and 1 / sqrt(variance + eps), of the sums of differences of `count` values to `around`.
static __device__ __forceinline__ float2 mean_and_scale(float2 sums, float around, float count, float eps) {
  const float shift = sums.x / count;
  return make_float2(around + shift, rsqrtf(fmaxf(sums.y / count - shift * shift, 0.0f) + eps));
}

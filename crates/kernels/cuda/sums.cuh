// Sums over the threads that have a row.
#pragma once

// Of both parts, for all lanes of a warp.
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

// Norm of a head's values, and rotary positions behind it, in one kernel; what is computed is f32, and rounded between the two as by two kernels.
#include "numbers.cuh"

constexpr int THREADS = 256;

template <typename T>
static __device__ __forceinline__ float rounded(float value) {
  T narrowed;
  narrow(value, &narrowed);
  return wide(narrowed);
}

// input, out: (rows, width), where the rows are (B, tokens, heads); weight: (width), of the first tokens, and one of the others; cos, sin:
// (tokens, width/2). A warp takes a row.
template <typename T>
static __device__ void norm_rope(const T *input, const T *weight, const T *other_weight, const float *cos, const float *sin, T *out, int64_t rows, int tokens, int first, int heads, int width, float eps) {
  const int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32, half = width / 2;
  const T *from = input + row * width;
  T *to = out + row * width;
  float sum = 0;
  for (int i = lane; i < width; i += 32) sum += wide(from[i]) * wide(from[i]);
  for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  const float scale = rsqrtf(sum / width + eps);
  const int token = row / heads % tokens;
  if (token >= first) weight = other_weight;
  const size_t angle = (size_t)token * half;
  for (int pair = lane; pair < half; pair += 32) {
    const float left = rounded<T>(scale * wide(from[2 * pair]) * wide(weight[2 * pair]));
    const float right = rounded<T>(scale * wide(from[2 * pair + 1]) * wide(weight[2 * pair + 1]));
    const float c = cos[angle + pair], s = sin[angle + pair];
    narrow(left * c - right * s, &to[2 * pair]);
    narrow(left * s + right * c, &to[2 * pair + 1]);
  }
}

#define KERNEL(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      norm_rope_##NAME(const T *input, const T *weight, const T *other_weight, const float *cos, const float *sin, T *out, int64_t rows, int tokens, int first, int heads, int width, float eps) { \
    norm_rope(input, weight, other_weight, cos, sin, out, rows, tokens, first, heads, width, eps); \
  }
KERNEL(f32, float)
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)

// Norm of a head's values, and rotary positions behind it, in one kernel; what is computed is f32, and rounded between the two as by two kernels.
#include "numbers.cuh"
#include "sums.cuh"

constexpr int THREADS = 256;

template <typename T>
static __device__ __forceinline__ float rounded(float value) {
  T narrowed;
  narrow(value, &narrowed);
  return wide(narrowed);
}

// input, out: (rows, width), where the rows are (B, tokens, heads); weight: (width), of the first tokens, and one of the others; cos, sin:
// (tokens, width/2). A warp takes a row, a thread SIZE neighbours at once: 2 or 4, pairs that turn together.
template <int SIZE, typename T>
static __device__ __forceinline__ void norm_rope(const T *__restrict__ input, const T *__restrict__ weight, const float *__restrict__ cos,
                                                 const float *__restrict__ sin, T *__restrict__ out, int64_t row, int token, int width, float eps) {
  const int lane = threadIdx.x % 32;
  const T *from = input + row * width;
  T *to = out + row * width;
  float sum = 0;
  for (int at = lane * SIZE; at < width; at += 32 * SIZE) {
    const Neighbours<T, SIZE> values = loaded<SIZE>(from + at);
#pragma unroll
    for (int j = 0; j < SIZE; j++) sum += wide(values.values[j]) * wide(values.values[j]);
  }
  sum = warp_sum(sum);
  const float scale = rsqrtf(sum / width + eps);
  const size_t angle = (size_t)token * (width / 2);
  for (int at = lane * SIZE; at < width; at += 32 * SIZE) {
    Neighbours<T, SIZE> values = loaded<SIZE>(from + at);
    const Neighbours<T, SIZE> weights = loaded<SIZE>(weight + at);
    const Neighbours<float, SIZE / 2> c = loaded<SIZE / 2>(cos + angle + at / 2), s = loaded<SIZE / 2>(sin + angle + at / 2);
#pragma unroll
    for (int j = 0; j < SIZE / 2; j++) {
      const float left = rounded<T>(scale * wide(values.values[2 * j]) * wide(weights.values[2 * j]));
      const float right = rounded<T>(scale * wide(values.values[2 * j + 1]) * wide(weights.values[2 * j + 1]));
      narrow(left * c.values[j] - right * s.values[j], &values.values[2 * j]);
      narrow(left * s.values[j] + right * c.values[j], &values.values[2 * j + 1]);
    }
    store(values, to + at);
  }
}

#define KERNEL(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      norm_rope_##NAME(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ other_weight, const float *__restrict__ cos, \
                       const float *__restrict__ sin, T *__restrict__ out, int64_t rows, int tokens, int first, int heads, int width, float eps) { \
    const int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32; \
    if (row >= rows) return; \
    const int token = row / heads % tokens; \
    const T *own = token < first ? weight : other_weight; \
    if (width % 4 == 0) norm_rope<4>(input, own, cos, sin, out, row, token, width, eps); \
    else norm_rope<2>(input, own, cos, sin, out, row, token, width, eps); \
  }
KERNEL(f32, float)
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)

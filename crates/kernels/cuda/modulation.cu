// How time changes the tokens of a flow, of which the first ones may be changed otherwise than the rest; what is computed is f32.
#include "numbers.cuh"
#include "sums.cuh"

constexpr int THREADS = 256;

// Layer norm without weights of its own, times `scale`, plus `shift`: (width) each, of the first rows and of the others. input, out: (rows, width).
// Grid (rows).
template <typename T>
static __device__ void modulate(const T *input, const T *scale, const T *shift, const T *other_scale, const T *other_shift, T *out, int rows, int first, int width, float eps) {
  const int row = blockIdx.x;
  const T *from = input + (size_t)row * width;
  T *to = out + (size_t)row * width;
  if (row >= first) {
    scale = other_scale;
    shift = other_shift;
  }
  // Sums of differences to one of the values: squares of what lies far from zero would cancel each other out.
  const float around = wide(from[0]);
  float2 sums = make_float2(0, 0);
  for (int i = threadIdx.x; i < width; i += THREADS) {
    const float difference = wide(from[i]) - around;
    sums.x += difference;
    sums.y += difference * difference;
  }
  sums = block_sum<THREADS>(sums);
  const float moved = sums.x / width, mean = around + moved;
  const float factor = rsqrtf(fmaxf(sums.y / width - moved * moved, 0.0f) + eps);
  for (int i = threadIdx.x; i < width; i += THREADS) narrow((wide(from[i]) - mean) * factor * wide(scale[i]) + wide(shift[i]), &to[i]);
}

// input + gate · change, the product rounded: (rows, width) with a gate (width) for the first values, those of whole rows, and one for the others.
template <typename T>
static __device__ void add_gated(const T *input, const T *change, const T *gate, const T *other_gate, T *out, int64_t count, int64_t first, int width) {
  for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS) {
    T product;
    narrow(wide(change[i]) * wide((i < first ? gate : other_gate)[i % width]), &product);
    narrow(wide(input[i]) + wide(product), &out[i]);
  }
}

#define KERNELS(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) modulate_##NAME(const T *input, const T *scale, const T *shift, const T *other_scale, \
                                                                        const T *other_shift, T *out, int rows, int first, int width, float eps) { \
    modulate(input, scale, shift, other_scale, other_shift, out, rows, first, width, eps); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      add_gated_##NAME(const T *input, const T *change, const T *gate, const T *other_gate, T *out, int64_t count, int64_t first, int width) { \
    add_gated(input, change, gate, other_gate, out, count, first, width); \
  }
KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)

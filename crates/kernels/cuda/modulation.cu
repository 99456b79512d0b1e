// How time changes the tokens of a flow, each of three parts of them in its own way; what is computed is f32.
#include "numbers.cuh"
#include "sums.cuh"

constexpr int THREADS = 256;

// One of three vectors, by the part of the tokens that a row is of.
template <typename T>
struct Parts {
  const T *first, *second, *third;
  __device__ __forceinline__ const T *of(int64_t at, int64_t first_end, int64_t second_end) const {
    return at < first_end ? first : at < second_end ? second : third;
  }
};

// Layer norm without weights of its own, times `scale`, plus `shift`: (width) each, of a row's part. `value(i)` gives the row's values, and may keep
// them: each thread asks for its own. A block takes a row.
template <typename T, typename Value>
static __device__ __forceinline__ void modulated(Value value, const T *kept, const T *scale, const T *shift, T *out, int width, float eps) {
  // Sums of differences to one of the values: squares of what lies far from zero would cancel each other out.
  const float around = value(0);
  float2 sums = make_float2(0, 0);
  for (int i = threadIdx.x; i < width; i += THREADS) {
    const float difference = value(i) - around;
    sums.x += difference;
    sums.y += difference * difference;
  }
  sums = block_sum<THREADS>(sums);
  const float moved = sums.x / width, mean = around + moved;
  const float factor = rsqrtf(fmaxf(sums.y / width - moved * moved, 0.0f) + eps);
  for (int i = threadIdx.x; i < width; i += THREADS) narrow((wide(kept[i]) - mean) * factor * wide(scale[i]) + wide(shift[i]), &out[i]);
}

// input, out: (rows, width). Grid (rows).
template <typename T>
static __device__ void modulate(const T *input, Parts<T> scales, Parts<T> shifts, T *out, int first_end, int second_end, int width, float eps) {
  const int row = blockIdx.x;
  const T *from = input + (size_t)row * width;
  auto value = [from](int i) { return wide(from[i]); };
  modulated(value, from, scales.of(row, first_end, second_end), shifts.of(row, first_end, second_end), out + (size_t)row * width, width, eps);
}

// input + gate · change, the product rounded: a value of `T`.
template <typename T>
static __device__ __forceinline__ T gated(T input, T change, T gate) {
  T product, sum;
  narrow(wide(change) * wide(gate), &product);
  narrow(wide(input) + wide(product), &sum);
  return sum;
}

// (rows, width) with a gate (width) for the values of each part, which are whole rows.
template <typename T>
static __device__ void add_gated(const T *input, const T *change, Parts<T> gates, T *out, int64_t count, int64_t first_end, int64_t second_end, int width) {
  for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS)
    out[i] = gated(input[i], change[i], gates.of(i, first_end, second_end)[i % width]);
}

// `add_gated`, which goes to `sum`, and `modulate` of it. Grid (rows).
template <typename T>
static __device__ void add_gated_modulate(const T *input, const T *change, Parts<T> gates, Parts<T> scales, Parts<T> shifts, T *sum, T *out, int first_end, int second_end, int width, float eps) {
  const int row = blockIdx.x;
  const size_t begin = (size_t)row * width;
  const T *gate = gates.of(row, first_end, second_end);
  auto value = [=](int i) {
    const T added = gated(input[begin + i], change[begin + i], gate[i]);
    // Each thread reads again what it has written itself.
    if (i % THREADS == threadIdx.x) sum[begin + i] = added;
    return wide(added);
  };
  modulated(value, sum + begin, scales.of(row, first_end, second_end), shifts.of(row, first_end, second_end), out + begin, width, eps);
}

#define KERNELS(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      modulate_##NAME(const T *input, const T *scale, const T *shift, const T *second_scale, const T *second_shift, const T *third_scale, \
                      const T *third_shift, T *out, int first_end, int second_end, int width, float eps) { \
    modulate(input, Parts<T>{scale, second_scale, third_scale}, Parts<T>{shift, second_shift, third_shift}, out, first_end, second_end, width, eps); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      add_gated_##NAME(const T *input, const T *change, const T *gate, const T *second_gate, const T *third_gate, T *out, int64_t count, \
                       int64_t first_end, int64_t second_end, int width) { \
    add_gated(input, change, Parts<T>{gate, second_gate, third_gate}, out, count, first_end, second_end, width); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      add_gated_modulate_##NAME(const T *input, const T *change, const T *gate, const T *second_gate, const T *third_gate, const T *scale, \
                                const T *shift, const T *second_scale, const T *second_shift, const T *third_scale, const T *third_shift, T *sum, \
                                T *out, int first_end, int second_end, int width, float eps) { \
    add_gated_modulate(input, change, Parts<T>{gate, second_gate, third_gate}, Parts<T>{scale, second_scale, third_scale}, \
                       Parts<T>{shift, second_shift, third_shift}, sum, out, first_end, second_end, width, eps); \
  }
KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)

// Layer norms, and how time changes the tokens of a flow, each of three parts of them in its own way; what is computed is f32.
#include "numbers.cuh"
#include "sums.cuh"

constexpr int THREADS = 256;
// Rows of at most so many bytes are a warp's each, which needs no barrier; a wider one is a block's.
constexpr int NARROW_BYTES = 2560;

// One of three vectors, by the part of the tokens that a row is of.
template <typename T>
struct Parts {
  const T *first, *second, *third;
  __device__ __forceinline__ const T *of(int row, int first_end, int second_end) const {
    return row < first_end ? first : row < second_end ? second : third;
  }
};

// A thread's row, and its place among the LANES that have it.
template <int LANES>
struct Place {
  const int row = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
};

// (x - mean) / sqrt(variance + eps) · scale + shift of a row. `value(at)` gives SIZE neighbours of the row from `at` on, `keep` gets them once, and what it keeps
// is read at `kept`.
template <int SIZE, int LANES, typename T, typename Value, typename Keep>
static __device__ __forceinline__ void normed(const Value &value, const Keep &keep, const T *kept, const T *__restrict__ scale, const T *__restrict__ shift,
                                              T *__restrict__ out, int width, float eps, int lane) {
  const float around = wide(value(0).values[0]);
  float2 sums = make_float2(0, 0);
  for (int at = lane * SIZE; at < width; at += LANES * SIZE) {
    const Neighbours<T, SIZE> values = value(at);
    keep(at, values);
#pragma unroll
    for (int j = 0; j < SIZE; j++) add_difference(sums, wide(values.values[j]) - around);
  }
  sums = block_sum<LANES>(sums);
  const float2 found = mean_and_scale(sums, around, (float)width, eps);
  for (int at = lane * SIZE; at < width; at += LANES * SIZE) {
    Neighbours<T, SIZE> values = loaded<SIZE>(kept + at);
    const Neighbours<T, SIZE> scales = loaded<SIZE>(scale + at), shifts = loaded<SIZE>(shift + at);
#pragma unroll
    for (int j = 0; j < SIZE; j++)
      narrow((wide(values.values[j]) - found.x) * found.y * wide(scales.values[j]) + wide(shifts.values[j]), &values.values[j]);
    store(values, out + at);
  }
}

// input, out: (rows, width); vectors: (width) each, of a row's part.
template <int SIZE, int LANES, typename T>
static __device__ void modulate(const T *__restrict__ input, const Parts<T> &scales, const Parts<T> &shifts, T *__restrict__ out, int first_end, int second_end,
                                int rows, int width, float eps) {
  const Place<LANES> place;
  if (place.row >= rows) return;
  const size_t begin = (size_t)place.row * width;
  const auto value = [&](int at) { return loaded<SIZE>(input + begin + at); };
  const auto keep = [](int, const Neighbours<T, SIZE> &) {};
  normed<SIZE, LANES>(value, keep, input + begin, scales.of(place.row, first_end, second_end), shifts.of(place.row, first_end, second_end), out + begin, width,
                      eps, place.lane);
}

// input + gate · change, the product rounded: a value of `T`.
template <typename T>
static __device__ __forceinline__ T gated(T input, T change, T gate) {
  T product, sum;
  narrow(wide(change) * wide(gate), &product);
  narrow(wide(input) + wide(product), &sum);
  return sum;
}
template <int SIZE, typename T>
static __device__ __forceinline__ Neighbours<T, SIZE> all_gated(const T *__restrict__ input, const T *__restrict__ change, const T *__restrict__ gate) {
  Neighbours<T, SIZE> values = loaded<SIZE>(input);
  const Neighbours<T, SIZE> changes = loaded<SIZE>(change), gates = loaded<SIZE>(gate);
#pragma unroll
  for (int j = 0; j < SIZE; j++) values.values[j] = gated(values.values[j], changes.values[j], gates.values[j]);
  return values;
}

// input, change, out: (rows, width), with a gate (width) for each part of the rows.
template <int SIZE, int LANES, typename T>
static __device__ void add_gated(const T *__restrict__ input, const T *__restrict__ change, const Parts<T> &gates, T *__restrict__ out, int first_end,
                                 int second_end, int rows, int width) {
  const Place<LANES> place;
  if (place.row >= rows) return;
  const size_t begin = (size_t)place.row * width;
  const T *gate = gates.of(place.row, first_end, second_end);
  for (int at = place.lane * SIZE; at < width; at += LANES * SIZE) store(all_gated<SIZE>(input + begin + at, change + begin + at, gate + at), out + begin + at);
}

// `add_gated`, which goes to `sum`, and `modulate` of it.
template <int SIZE, int LANES, typename T>
static __device__ void add_gated_modulate(const T *__restrict__ input, const T *__restrict__ change, const Parts<T> &gates, const Parts<T> &scales,
                                          const Parts<T> &shifts, T *sum, T *__restrict__ out, int first_end, int second_end, int rows, int width, float eps) {
  const Place<LANES> place;
  if (place.row >= rows) return;
  const size_t begin = (size_t)place.row * width;
  const T *gate = gates.of(place.row, first_end, second_end);
  const auto value = [&](int at) { return all_gated<SIZE>(input + begin + at, change + begin + at, gate + at); };
  // A thread reads again what it has written itself.
  const auto keep = [&](int at, const Neighbours<T, SIZE> &values) { store(values, sum + begin + at); };
  normed<SIZE, LANES>(value, keep, sum + begin, scales.of(place.row, first_end, second_end), shifts.of(place.row, first_end, second_end), out + begin, width,
                      eps, place.lane);
}

// A function for rows of so many values, by how many of them go together and who has them. Grid (rows / (THREADS / LANES)), 256 threads.
#define CHOSEN(FUNCTION, T, ...) \
  if (width * sizeof(T) <= NARROW_BYTES) { \
    if (width % PACK<T> == 0) FUNCTION<PACK<T>, 32>(__VA_ARGS__); \
    else FUNCTION<1, 32>(__VA_ARGS__); \
  } else { \
    if (width % PACK<T> == 0) FUNCTION<PACK<T>, THREADS>(__VA_ARGS__); \
    else FUNCTION<1, THREADS>(__VA_ARGS__); \
  }
#define KERNELS(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS, 4) \
      layer_norm_##NAME(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, T *__restrict__ out, int rows, int width, \
                        float eps) { \
    const Parts<T> scales{weight, weight, weight}, shifts{bias, bias, bias}; \
    CHOSEN(modulate, T, input, scales, shifts, out, rows, rows, rows, width, eps) \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS, 4) \
      modulate_##NAME(const T *__restrict__ input, const T *scale, const T *shift, const T *second_scale, const T *second_shift, const T *third_scale, \
                      const T *third_shift, T *__restrict__ out, int first_end, int second_end, int rows, int width, float eps) { \
    const Parts<T> scales{scale, second_scale, third_scale}, shifts{shift, second_shift, third_shift}; \
    CHOSEN(modulate, T, input, scales, shifts, out, first_end, second_end, rows, width, eps) \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS, 4) \
      add_gated_##NAME(const T *__restrict__ input, const T *__restrict__ change, const T *gate, const T *second_gate, const T *third_gate, \
                       T *__restrict__ out, int first_end, int second_end, int rows, int width) { \
    const Parts<T> gates{gate, second_gate, third_gate}; \
    CHOSEN(add_gated, T, input, change, gates, out, first_end, second_end, rows, width) \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS, 4) \
      add_gated_modulate_##NAME(const T *__restrict__ input, const T *__restrict__ change, const T *gate, const T *second_gate, const T *third_gate, \
                                const T *scale, const T *shift, const T *second_scale, const T *second_shift, const T *third_scale, const T *third_shift, \
                                T *sum, T *__restrict__ out, int first_end, int second_end, int rows, int width, float eps) { \
    const Parts<T> gates{gate, second_gate, third_gate}, scales{scale, second_scale, third_scale}, shifts{shift, second_shift, third_shift}; \
    CHOSEN(add_gated_modulate, T, input, change, gates, scales, shifts, sum, out, first_end, second_end, rows, width, eps) \
  }
KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)

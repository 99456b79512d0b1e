// What follows a product or a convolution, in one pass: its bias and the residual, added in place; GEGLU; or any gate. What is computed is f32, rounded once.
#include "gates.cuh"
#include "grid.cuh"
#include "numbers.cuh"

// What a thread loads and stores at once.
template <typename T> using Pack = Neighbours<T, PACK<T>>;

// As `add_bias`, with places counted in I.
template <typename I, typename T>
static __device__ __forceinline__ void add_bias_by(T *values, const T *bias, const T *residual, I count, I places, I biases, I channels) {
  constexpr I SIZE = PACK<T>;
  const I image = places * channels, first = (I)thread_of_grid(), step = (I)threads_of_grid();
  const auto of = [&](I i) -> const T * {
    if (channels == 0) return bias + i / places % biases;
    return bias + i / image * channels % biases + i % channels;
  };
  const bool together = channels ? channels % SIZE == 0 : places % SIZE == 0 || (places == 1 && biases % SIZE == 0);
  if (count % SIZE == 0 && together) {
    const bool differ = channels || places == 1;
    for (I i = first * SIZE; i < count; i += step * SIZE) {
      Pack<T> pack = *reinterpret_cast<const Pack<T> *>(values + i), before;
      if (residual) before = *reinterpret_cast<const Pack<T> *>(residual + i);
      const T *raise = of(i);
#pragma unroll
      for (int j = 0; j < PACK<T>; j++) {
        const float sum = wide(pack.values[j]) + wide(raise[differ ? j : 0]);
        narrow(residual ? wide(before.values[j]) + sum : sum, &pack.values[j]);
      }
      *reinterpret_cast<Pack<T> *>(values + i) = pack;
    }
  } else {
    for (I i = first; i < count; i += step) {
      const float sum = wide(values[i]) + wide(*of(i));
      narrow(residual ? wide(residual[i]) + sum : sum, &values[i]);
    }
  }
}

// values, residual: (..., channels, places), or (..., places, channels) where channels is not 0; residual may be null. bias: of all channels, or of
// those of each image. Blocks of 256 threads. Divisions of 64 bits would take longer than the memory does.
template <typename T>
static __device__ void add_bias(T *values, const T *bias, const T *residual, int64_t count, int places, int biases, int channels) {
  if (count < 1 << 30)
    add_bias_by<uint32_t>(values, bias, residual, (uint32_t)count, (uint32_t)places, (uint32_t)biases, (uint32_t)channels);
  else
    add_bias_by<uint64_t>(values, bias, residual, (uint64_t)count, (uint64_t)places, (uint64_t)biases, (uint64_t)channels);
}

// both: (rows, 2 width), values before gates; bias: (2 width); out: (rows, width). Blocks of 256 threads.
template <typename T>
static __device__ void geglu(const T *both, const T *bias, T *out, int64_t rows, int width) {
  constexpr int SIZE = PACK<T>;
  const int64_t count = rows * width;
  if (width % SIZE == 0) {
    for (int64_t i = thread_of_grid() * SIZE; i < count; i += threads_of_grid() * SIZE) {
      const int64_t row = i / width;
      const int column = (int)(i - row * width);
      const T *from = both + row * 2 * width + column;
      const Pack<T> value = *reinterpret_cast<const Pack<T> *>(from), gate = *reinterpret_cast<const Pack<T> *>(from + width);
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < SIZE; j++)
        narrow((wide(value.values[j]) + wide(bias[column + j])) * opened<Gate::gelu>(wide(gate.values[j]) + wide(bias[width + column + j])), &pack.values[j]);
      *reinterpret_cast<Pack<T> *>(out + i) = pack;
    }
  } else {
    for (int64_t i = thread_of_grid(); i < count; i += threads_of_grid()) {
      const int64_t row = i / width;
      const int column = (int)(i - row * width);
      const T *from = both + row * 2 * width + column;
      narrow((wide(from[0]) + wide(bias[column])) * opened<Gate::gelu>(wide(from[width]) + wide(bias[width + column])), &out[i]);
    }
  }
}

// values, gates, out: `count` values each. Blocks of 256 threads.
template <Gate GATE, typename T>
static __device__ void open_gates(const T *values, const T *gates, T *out, int64_t count) {
  constexpr int SIZE = PACK<T>;
  if (count % SIZE == 0) {
    for (int64_t i = thread_of_grid() * SIZE; i < count; i += threads_of_grid() * SIZE) {
      const Pack<T> value = *reinterpret_cast<const Pack<T> *>(values + i), gate = *reinterpret_cast<const Pack<T> *>(gates + i);
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < SIZE; j++) narrow(wide(value.values[j]) * opened<GATE>(wide(gate.values[j])), &pack.values[j]);
      *reinterpret_cast<Pack<T> *>(out + i) = pack;
    }
  } else {
    for (int64_t i = thread_of_grid(); i < count; i += threads_of_grid()) narrow(wide(values[i]) * opened<GATE>(wide(gates[i])), &out[i]);
  }
}

#define OPEN(GATE, NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) open_##GATE##_##NAME(const T *values, const T *gates, T *out, int64_t count) { \
    open_gates<Gate::GATE>(values, gates, out, count); \
  }
#define KERNELS(NAME, T) \
  OPEN(gelu, NAME, T) OPEN(gelu_tanh, NAME, T) OPEN(silu, NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      add_bias_##NAME(T *values, const T *bias, const T *residual, int64_t count, int places, int biases, int channels) { \
    add_bias(values, bias, residual, count, places, biases, channels); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) geglu_##NAME(const T *both, const T *bias, T *out, int64_t rows, int width) { \
    geglu(both, bias, out, rows, width); \
  }
KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)

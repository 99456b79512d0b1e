// The blocks that ggml packs weights in, made whole: what src/gguf.rs does on a CPU, value by value. Products and sums are rounded one by one, as
// there: an fma would give other bits.
#include "numbers.cuh"

static __device__ __forceinline__ float half_at(const uint8_t *bytes) { return __half2float(*(const __half *)bytes); }
static __device__ __forceinline__ float plus(float d, int q, float m) { return __fadd_rn(__fmul_rn(d, (float)q), m); }
// The fifth bits of 32 values lie apart from the other four.
static __device__ __forceinline__ int five(const uint8_t *high, const uint8_t *low, int place) {
  return low[place % 16] >> place / 16 * 4 & 15 | (high[place / 8] >> place % 8 & 1) << 4;
}
static __device__ __forceinline__ int four(const uint8_t *low, int place) { return low[place % 16] >> place / 16 * 4 & 15; }

struct q4_0 {
  static const int values = 32, bytes = 18;
  static __device__ float at(const uint8_t *block, int place) { return __fmul_rn(half_at(block), (float)(four(block + 2, place) - 8)); }
};
struct q4_1 {
  static const int values = 32, bytes = 20;
  static __device__ float at(const uint8_t *block, int place) { return plus(half_at(block), four(block + 4, place), half_at(block + 2)); }
};
struct q5_0 {
  static const int values = 32, bytes = 22;
  static __device__ float at(const uint8_t *block, int place) { return __fmul_rn(half_at(block), (float)(five(block + 2, block + 6, place) - 16)); }
};
struct q5_1 {
  static const int values = 32, bytes = 24;
  static __device__ float at(const uint8_t *block, int place) { return plus(half_at(block), five(block + 4, block + 8, place), half_at(block + 2)); }
};
struct q8_0 {
  static const int values = 32, bytes = 34;
  static __device__ float at(const uint8_t *block, int place) { return __fmul_rn(half_at(block), (float)(int8_t)block[2 + place]); }
};

// 256 values in 8 parts, each with a scale and an offset of 6 bits, out of 12 bytes.
static __device__ __forceinline__ float scaled(const uint8_t *block, int part, int q) {
  const uint8_t *bytes = block + 4;
  const int scale = part < 4 ? bytes[part] & 63 : bytes[part + 4] & 15 | bytes[part - 4] >> 6 << 4;
  const int offset = part < 4 ? bytes[part + 4] & 63 : bytes[part + 4] >> 4 | bytes[part] >> 6 << 4;
  return plus(__fmul_rn(half_at(block), (float)scale), q, -__fmul_rn(half_at(block + 2), (float)offset));
}
struct q4_k {
  static const int values = 256, bytes = 144;
  static __device__ float at(const uint8_t *block, int place) {
    const int part = place / 32;
    return scaled(block, part, block[16 + part / 2 * 32 + place % 32] >> part % 2 * 4 & 15);
  }
};
struct q5_k {
  static const int values = 256, bytes = 176;
  static __device__ float at(const uint8_t *block, int place) {
    const int part = place / 32;
    return scaled(block, part, block[48 + part / 2 * 32 + place % 32] >> part % 2 * 4 & 15 | (block[16 + place % 32] >> part & 1) << 4);
  }
};
struct q6_k {
  static const int values = 256, bytes = 210;
  static __device__ float at(const uint8_t *block, int place) {
    const int half = place / 128, quarter = place / 32 % 4, column = place % 32;
    const int q = block[half * 64 + quarter % 2 * 32 + column] >> quarter / 2 * 4 & 15 | (block[128 + half * 32 + column] >> quarter * 2 & 3) << 4;
    return __fmul_rn(__fmul_rn(half_at(block + 208), (float)(int8_t)block[192 + place / 16]), (float)(q - 32));
  }
};

// blocks: count / values of them. out: (count).
template <typename Blocks, typename T> static __device__ void unpack(const uint8_t *blocks, T *out, size_t count) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
    narrow(Blocks::at(blocks + i / Blocks::values * Blocks::bytes, (int)(i % Blocks::values)), &out[i]);
}

#define KERNEL(BLOCKS, NAME, T) \
  extern "C" __global__ void unpack_##BLOCKS##_##NAME(const uint8_t *blocks, T *out, size_t count) { unpack<BLOCKS>(blocks, out, count); }
#define KERNELS(BLOCKS) KERNEL(BLOCKS, f32, float) KERNEL(BLOCKS, f16, __half) KERNEL(BLOCKS, bf16, __nv_bfloat16)
KERNELS(q4_0)
KERNELS(q4_1)
KERNELS(q5_0)
KERNELS(q5_1)
KERNELS(q8_0)
KERNELS(q4_k)
KERNELS(q5_k)
KERNELS(q6_k)

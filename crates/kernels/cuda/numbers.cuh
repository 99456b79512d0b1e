// The formats that kernels read and write; what is computed is f32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

static __device__ __forceinline__ float wide(float value) { return value; }
static __device__ __forceinline__ float wide(__half value) { return __half2float(value); }
static __device__ __forceinline__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }

static __device__ __forceinline__ void narrow(float value, float *to) { *to = value; }
static __device__ __forceinline__ void narrow(float value, __half *to) { *to = __float2half_rn(value); }
static __device__ __forceinline__ void narrow(float value, __nv_bfloat16 *to) { *to = __float2bfloat16_rn(value); }

// Values that lie behind each other, loaded and stored at once.
template <typename T, int SIZE>
struct alignas(SIZE * sizeof(T)) Neighbours {
  T values[SIZE];
};
// As many as a thread loads at once: 16 bytes.
template <typename T> constexpr int PACK = 16 / sizeof(T);
template <int SIZE, typename T> static __device__ __forceinline__ Neighbours<T, SIZE> loaded(const T *from) {
  return *reinterpret_cast<const Neighbours<T, SIZE> *>(from);
}
template <typename T, int SIZE> static __device__ __forceinline__ void store(const Neighbours<T, SIZE> &values, T *to) {
  *reinterpret_cast<Neighbours<T, SIZE> *>(to) = values;
}

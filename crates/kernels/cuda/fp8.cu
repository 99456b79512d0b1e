// 8-bit values (e4m3) on their way into a product and out of it. The rounding is NVIDIA's, cuda_fp8.h: to the nearest, halves to even,
// saturating at 448.
#include <cuda_fp8.h>
#include "gates.cuh"
#include "numbers.cuh"

// Where the scale of a token is: those of the first tokens, a gap, and those of the others.
static __device__ __forceinline__ int scale_at(int token, int first_tokens, int gap) { return token < first_tokens ? token : token + gap; }

// A block a token: its largest magnitude, the scale that brings that to 448, and the token's values over the scale, rounded.
// input: (tokens, width). bits: (tokens, width). scales: (tokens + gap). 256 threads, each with SIZE neighbours at once.
template <int SIZE, typename T> static __device__ void round_token(const T *__restrict__ input, uint8_t *__restrict__ bits, float *scales, int width, int first_tokens, int gap) {
  __shared__ float largest_of_warp[8];
  const size_t first = (size_t)blockIdx.x * width;
  float largest = 0;
  for (int column = threadIdx.x * SIZE; column < width; column += blockDim.x * SIZE) {
    const Neighbours<T, SIZE> values = loaded<SIZE>(input + first + column);
#pragma unroll
    for (int j = 0; j < SIZE; j++) {
      const float magnitude = fabsf(wide(values.values[j]));
      // fmaxf drops NaN; here it must reach the scale, so that the result says that the input was none.
      largest = magnitude > largest || isnan(magnitude) ? magnitude : largest;
    }
  }
  for (int distance = 16; distance; distance /= 2) {
    const float other = __shfl_xor_sync(~0u, largest, distance);
    largest = other > largest || isnan(other) ? other : largest;
  }
  if (threadIdx.x % 32 == 0) largest_of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = largest_of_warp[0];
  for (int warp = 1; warp < blockDim.x / 32; warp++) {
    const float other = largest_of_warp[warp];
    largest = other > largest || isnan(other) ? other : largest;
  }
  // The least scale keeps a token of zeros one of zeros.
  const float scale = largest / 448.0f > 1e-12f || isnan(largest) ? largest / 448.0f : 1e-12f;
  if (threadIdx.x == 0) scales[scale_at(blockIdx.x, first_tokens, gap)] = scale;
  for (int column = threadIdx.x * SIZE; column < width; column += blockDim.x * SIZE) {
    const Neighbours<T, SIZE> values = loaded<SIZE>(input + first + column);
    Neighbours<uint8_t, SIZE> rounded;
#pragma unroll
    for (int j = 0; j < SIZE; j++) rounded.values[j] = __nv_cvt_float_to_fp8(wide(values.values[j]) / scale, __NV_SATFINITE, __NV_E4M3);
    store(rounded, bits + first + column);
  }
}

// product: (tokens, width), times the token's scale, times the weight's (one for all, or one a column), rounded to T, plus a bias; gelu of that,
// where it is asked for. Scales and bias are of the first tokens' weight, and of the others'.
template <typename T>
static __device__ void finish(const __nv_bfloat16 *product, const float *token_scales, const float *weight_scales, int scale_stride, const T *bias,
                              const float *other_scales, int other_stride, const T *other_bias, T *out, int first_tokens, int gap, int width, int gelus) {
  const size_t first = (size_t)blockIdx.x * width;
  const float token_scale = token_scales[scale_at(blockIdx.x, first_tokens, gap)];
  if (blockIdx.x >= first_tokens) {
    weight_scales = other_scales;
    scale_stride = other_stride;
    bias = other_bias;
  }
  for (int column = blockIdx.y * blockDim.x + threadIdx.x; column < width; column += gridDim.y * blockDim.x) {
    T rounded;
    narrow(__bfloat162float(product[first + column]) * token_scale * weight_scales[column * scale_stride], &rounded);
    const float sum = wide(rounded) + wide(bias[column]);
    narrow(gelus ? opened<Gate::gelu_tanh>(sum) : sum, &out[first + column]);
  }
}

// Every e4m3 value is exact in f16, bf16 and f32.
template <typename T> static __device__ void widen(const uint8_t *bits, T *out, size_t count) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
    narrow(wide((__half)__nv_cvt_fp8_to_halfraw(bits[i], __NV_E4M3)), &out[i]);
}

#define KERNELS(NAME, T) \
  extern "C" __global__ void round_tokens_##NAME(const T *__restrict__ input, uint8_t *__restrict__ bits, float *scales, int width, int first_tokens, int gap) { \
    if (width % PACK<T> == 0) round_token<PACK<T>>(input, bits, scales, width, first_tokens, gap); \
    else round_token<1>(input, bits, scales, width, first_tokens, gap); \
  } \
  extern "C" __global__ void finish_##NAME(const __nv_bfloat16 *product, const float *token_scales, const float *weight_scales, int scale_stride, const T *bias, \
                                           const float *other_scales, int other_stride, const T *other_bias, T *out, int first_tokens, int gap, int width, int gelus) { \
    finish(product, token_scales, weight_scales, scale_stride, bias, other_scales, other_stride, other_bias, out, first_tokens, gap, width, gelus); \
  } \
  extern "C" __global__ void widen_##NAME(const uint8_t *bits, T *out, size_t count) { widen(bits, out, count); }
KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)

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

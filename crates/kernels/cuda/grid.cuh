// Threads of a grid in one row, in blocks of 256, which go over more values than they are.
#pragma once
#include <stdint.h>

constexpr int THREADS = 256;

static __device__ __forceinline__ int64_t thread_of_grid() { return blockIdx.x * (int64_t)THREADS + threadIdx.x; }
static __device__ __forceinline__ int64_t threads_of_grid() { return gridDim.x * (int64_t)THREADS; }

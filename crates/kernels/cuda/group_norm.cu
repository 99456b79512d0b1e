// Group norm, alone or with the silu that follows it, in one kernel: statistics and what is computed are f32.
#include "numbers.cuh"
#include "sums.cuh"

constexpr int THREADS = 512;

// input, out: (B, channels, places); weight, bias: (channels). Grid (groups, B), 512 threads.
template <typename T>
static __device__ void norm(const T *input, const T *weight, const T *bias, T *out, int channels, int groups, int places, float eps, int silu) {
  const int in_group = channels / groups, first_channel = blockIdx.x * in_group;
  const int64_t count = (int64_t)in_group * places;
  const size_t first = ((size_t)blockIdx.y * channels + first_channel) * places;
  const T *from = input + first;
  T *to = out + first;
  // Sums of differences to one of the values: squares of what lies far from zero would cancel each other out.
  const float around = wide(from[0]);
  float2 sums = make_float2(0, 0);
  for (int64_t i = threadIdx.x; i < count; i += THREADS) {
    const float difference = wide(from[i]) - around;
    sums.x += difference;
    sums.y += difference * difference;
  }
  sums = block_sum<THREADS>(sums);
  const float shift = sums.x / count, mean = around + shift;
  const float scale = rsqrtf(fmaxf(sums.y / count - shift * shift, 0.0f) + eps);
  for (int64_t i = threadIdx.x; i < count; i += THREADS) {
    const int channel = first_channel + (int)(i / places);
    float value = (wide(from[i]) - mean) * scale * wide(weight[channel]) + wide(bias[channel]);
    if (silu) value = value / (1 + expf(-value));
    narrow(value, &to[i]);
  }
}

#define KERNEL(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_##NAME(const T *input, const T *weight, const T *bias, T *out, int channels, int groups, int places, float eps, int silu) { \
    norm(input, weight, bias, out, channels, groups, places, eps, silu); \
  }
KERNEL(f32, float)
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)

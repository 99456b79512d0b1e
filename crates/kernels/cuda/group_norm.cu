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

// The values of a group where the channels are last, each thread SIZE neighbours at a time: visit(channel within the group, values of the image before it).
template <int SIZE, typename VISIT>
static __device__ __forceinline__ void each_last(int in_group, int channels, int places, VISIT visit) {
  const int packs = in_group / SIZE, further = THREADS / packs, rest = THREADS % packs;
  int pack = threadIdx.x % packs;
  for (int64_t place = threadIdx.x / packs; place < places;) {
    visit(pack * SIZE, (size_t)place * channels);
    pack += rest;
    place += further + (pack >= packs);
    if (pack >= packs) pack -= packs;
  }
}

template <typename T, int SIZE>
struct alignas(SIZE * sizeof(T)) Neighbours {
  T values[SIZE];
};

// input, out: (B, places, channels); weight, bias: (channels). Grid (groups, B), 512 threads.
template <typename T, int SIZE>
static __device__ __forceinline__ void norm_last(const T *input, const T *weight, const T *bias, T *out, int channels, int groups, int places, float eps,
                                                 int silu) {
  using Values = Neighbours<T, SIZE>;
  const int in_group = channels / groups, first_channel = blockIdx.x * in_group;
  const int64_t count = (int64_t)in_group * places;
  const size_t first = (size_t)blockIdx.y * channels * places + first_channel;
  const T *from = input + first;
  T *to = out + first;
  const float around = wide(from[0]);
  float2 sums = make_float2(0, 0);
  each_last<SIZE>(in_group, channels, places, [&](int channel, size_t place) {
    const Values values = *reinterpret_cast<const Values *>(from + place + channel);
#pragma unroll
    for (int j = 0; j < SIZE; j++) {
      const float difference = wide(values.values[j]) - around;
      sums.x += difference;
      sums.y += difference * difference;
    }
  });
  sums = block_sum<THREADS>(sums);
  const float shift = sums.x / count, mean = around + shift;
  const float scale = rsqrtf(fmaxf(sums.y / count - shift * shift, 0.0f) + eps);
  each_last<SIZE>(in_group, channels, places, [&](int channel, size_t place) {
    Values values = *reinterpret_cast<const Values *>(from + place + channel);
#pragma unroll
    for (int j = 0; j < SIZE; j++) {
      const int of = first_channel + channel + j;
      float value = (wide(values.values[j]) - mean) * scale * wide(weight[of]) + wide(bias[of]);
      if (silu) value = value / (1 + expf(-value));
      narrow(value, &values.values[j]);
    }
    *reinterpret_cast<Values *>(to + place + channel) = values;
  });
}

#define KERNEL(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_##NAME(const T *input, const T *weight, const T *bias, T *out, int channels, int groups, int places, float eps, int silu) { \
    norm(input, weight, bias, out, channels, groups, places, eps, silu); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_last_##NAME(const T *input, const T *weight, const T *bias, T *out, int channels, int groups, int places, float eps, int silu) { \
    if (channels / groups % 2 == 0) \
      norm_last<T, 2>(input, weight, bias, out, channels, groups, places, eps, silu); \
    else \
      norm_last<T, 1>(input, weight, bias, out, channels, groups, places, eps, silu); \
  }
KERNEL(f32, float)
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)

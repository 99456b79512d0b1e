// Group norm, alone or with the silu that follows it, in one kernel: statistics and what is computed are f32.
#include "numbers.cuh"
#include "sums.cuh"

constexpr int THREADS = 512;
// Of a thread at once.
constexpr int LOADS = 4;

// input, out: (B, channels, places); weight, bias: (channels). Grid (groups, B), 512 threads.
template <typename T>
static __device__ void norm(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, T *__restrict__ out, int channels, int groups, int places, float eps, int silu) {
  const int in_group = channels / groups, first_channel = blockIdx.x * in_group;
  const int64_t count = (int64_t)in_group * places;
  const size_t first = ((size_t)blockIdx.y * channels + first_channel) * places;
  const T *__restrict__ from = input + first;
  T *__restrict__ to = out + first;
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
#pragma unroll LOADS
  for (int64_t i = threadIdx.x; i < count; i += THREADS) {
    const int channel = first_channel + (int)(i / places);
    float value = (wide(from[i]) - mean) * scale * wide(weight[channel]) + wide(bias[channel]);
    if (silu) value = value / (1 + expf(-value));
    narrow(value, &to[i]);
  }
}

// input, out: (B, places, channels); weight, bias: (channels). Grid (groups, B), 512 threads. A thread takes SIZE neighbouring channels, always the same
// ones, of as many places as there are threads left; what does not go into 512 threads has nothing to do.
template <typename T, int SIZE>
static __device__ __forceinline__ void norm_last(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, T *__restrict__ out, int channels, int groups, int places, float eps,
                                                 int silu) {
  const int in_group = channels / groups, first_channel = blockIdx.x * in_group, packs = in_group / SIZE;
  const int together = packs < THREADS ? THREADS / packs : 1;
  const int first_pack = packs < THREADS ? threadIdx.x % packs : threadIdx.x;
  const int place_of_thread = packs < THREADS ? threadIdx.x / packs : 0;
  const int first_place = place_of_thread < together ? place_of_thread : places;
  const size_t first = (size_t)blockIdx.y * channels * places + first_channel;
  const float around = wide(input[first]);
  float2 sums = make_float2(0, 0);
  for (int pack = first_pack; pack < packs; pack += THREADS) {
    const T *from = input + first + pack * SIZE;
#pragma unroll LOADS
    for (int place = first_place; place < places; place += together) {
      const Neighbours<T, SIZE> values = loaded<SIZE>(from + (size_t)place * channels);
#pragma unroll
      for (int j = 0; j < SIZE; j++) {
        const float difference = wide(values.values[j]) - around;
        sums.x += difference;
        sums.y += difference * difference;
      }
    }
  }
  sums = block_sum<THREADS>(sums);
  const float count = (float)in_group * places;
  const float shift = sums.x / count, mean = around + shift;
  const float scale = rsqrtf(fmaxf(sums.y / count - shift * shift, 0.0f) + eps);
  for (int pack = first_pack; pack < packs; pack += THREADS) {
    const size_t at = first + pack * SIZE;
    float factor[SIZE], summand[SIZE];
#pragma unroll
    for (int j = 0; j < SIZE; j++) {
      const int channel = first_channel + pack * SIZE + j;
      factor[j] = scale * wide(weight[channel]);
      summand[j] = wide(bias[channel]);
    }
    // Loads before stores: compilers leave them in order, and one at a time would wait for each.
    for (int place = first_place; place < places; place += LOADS * together) {
      Neighbours<T, SIZE> values[LOADS];
#pragma unroll
      for (int i = 0; i < LOADS; i++)
        if (place + i * together < places) values[i] = loaded<SIZE>(input + at + (size_t)(place + i * together) * channels);
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
#pragma unroll
        for (int j = 0; j < SIZE; j++) {
          float value = (wide(values[i].values[j]) - mean) * factor[j] + summand[j];
          if (silu) value = value / (1 + expf(-value));
          narrow(value, &values[i].values[j]);
        }
        if (place + i * together < places) store(values[i], out + at + (size_t)(place + i * together) * channels);
      }
    }
  }
}

#define KERNEL(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_##NAME(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, T *__restrict__ out, int channels, int groups, int places, float eps, int silu) { \
    norm(input, weight, bias, out, channels, groups, places, eps, silu); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_last_##NAME(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, T *__restrict__ out, int channels, int groups, int places, float eps, int silu) { \
    const int in_group = channels / groups; \
    if (in_group % 8 == 0 && sizeof(T) == 2) \
      norm_last<T, 16 / sizeof(T)>(input, weight, bias, out, channels, groups, places, eps, silu); \
    else if (in_group % 4 == 0) \
      norm_last<T, 4>(input, weight, bias, out, channels, groups, places, eps, silu); \
    else if (in_group % 2 == 0) \
      norm_last<T, 2>(input, weight, bias, out, channels, groups, places, eps, silu); \
    else \
      norm_last<T, 1>(input, weight, bias, out, channels, groups, places, eps, silu); \
  }
KERNEL(f32, float)
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)

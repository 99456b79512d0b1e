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
  const float around = wide(from[0]);
  float2 sums = make_float2(0, 0);
  for (int64_t i = threadIdx.x; i < count; i += THREADS) {
    add_difference(sums, wide(from[i]) - around);
  }
  sums = block_sum<THREADS>(sums);
  const float2 found = mean_and_scale(sums, around, (float)count, eps);
#pragma unroll LOADS
  for (int64_t i = threadIdx.x; i < count; i += THREADS) {
    const int channel = first_channel + (int)(i / places);
    float value = (wide(from[i]) - found.x) * found.y * wide(weight[channel]) + wide(bias[channel]);
    if (silu) value = value / (1 + expf(-value));
    narrow(value, &to[i]);
  }
}

// (x - mean) · factor + summand of SIZE channels, and silu, from place `first` on to `end`, of every so many.
template <int SIZE, typename T>
static __device__ __forceinline__ void norm_places(const T *__restrict__ from, T *__restrict__ to, int first, int together, int end, int channels, float mean,
                                                   const float (&factor)[SIZE], const float (&summand)[SIZE], int silu) {
  // Loads before stores: compilers leave them in order, and one at a time would wait for each.
  for (int place = first; place < end; place += LOADS * together) {
    Neighbours<T, SIZE> values[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; i++)
      if (place + i * together < end) values[i] = loaded<SIZE>(from + (size_t)(place + i * together) * channels);
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
#pragma unroll
      for (int j = 0; j < SIZE; j++) {
        float value = (wide(values[i].values[j]) - mean) * factor[j] + summand[j];
        if (silu) value = value / (1 + expf(-value));
        narrow(value, &values[i].values[j]);
      }
      if (place + i * together < end) store(values[i], to + (size_t)(place + i * together) * channels);
    }
  }
}

// input, out: (B, places, channels); weight, bias: (channels). Grid (groups, B), 512 threads. A thread takes SIZE neighbouring channels, always the same
// ones, of as many places as there are threads left; what does not go into 512 threads has nothing to do.
template <int SIZE, typename T>
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
      for (int j = 0; j < SIZE; j++) add_difference(sums, wide(values.values[j]) - around);
    }
  }
  sums = block_sum<THREADS>(sums);
  const float count = (float)in_group * places;
  const float2 found = mean_and_scale(sums, around, (float)count, eps);
  for (int pack = first_pack; pack < packs; pack += THREADS) {
    const size_t at = first + pack * SIZE;
    float factor[SIZE], summand[SIZE];
#pragma unroll
    for (int j = 0; j < SIZE; j++) {
      const int channel = first_channel + pack * SIZE + j;
      factor[j] = found.y * wide(weight[channel]);
      summand[j] = wide(bias[channel]);
    }
    norm_places<SIZE>(input + at, out + at, first_place, together, places, channels, found.x, factor, summand, silu);
  }
}

// A large image is normed in parts by two kernels: sums of each part, and what is made of them all. One block for a group would leave most of a GPU idle.

// Mean and 1 / sqrt(variance + eps) of a group, from the sums of its parts; for all lanes of a warp.
static __device__ __forceinline__ float2 statistics(const float2 *__restrict__ sums, int parts, float around, float count, float eps) {
  float2 sum = make_float2(0, 0);
  for (int part = threadIdx.x % 32; part < parts; part += 32) {
    sum.x += sums[part].x;
    sum.y += sums[part].y;
  }
  return mean_and_scale(warp_sum(sum), around, count, eps);
}

// input: (B, channels, places); sums: (B, groups, parts). Grid (parts, groups, B), 512 threads.
template <typename T>
static __device__ void part_sums(const T *__restrict__ input, float2 *__restrict__ sums, int channels, int groups, int places) {
  const int64_t count = (int64_t)(channels / groups) * places, group = (int64_t)blockIdx.z * groups + blockIdx.y;
  const int64_t begin = count * blockIdx.x / gridDim.x, end = count * (blockIdx.x + 1) / gridDim.x;
  const T *from = input + group * count;
  const float around = wide(from[0]);
  float2 sum = make_float2(0, 0);
#pragma unroll LOADS
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) add_difference(sum, wide(from[i]) - around);
  sum = block_sum<THREADS>(sum);
  if (threadIdx.x == 0) sums[group * gridDim.x + blockIdx.x] = sum;
}

template <typename T>
static __device__ void norm_part(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, const float2 *__restrict__ sums,
                                 T *__restrict__ out, int channels, int groups, int places, float eps, int silu) {
  const int in_group = channels / groups;
  const int64_t count = (int64_t)in_group * places, group = (int64_t)blockIdx.z * groups + blockIdx.y;
  const int64_t begin = count * blockIdx.x / gridDim.x, end = count * (blockIdx.x + 1) / gridDim.x;
  const T *from = input + group * count;
  T *to = out + group * count;
  const float2 found = statistics(sums + group * gridDim.x, gridDim.x, wide(from[0]), (float)count, eps);
#pragma unroll LOADS
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
    const int channel = blockIdx.y * in_group + (int)(i / places);
    float value = (wide(from[i]) - found.x) * found.y * wide(weight[channel]) + wide(bias[channel]);
    if (silu) value = value / (1 + expf(-value));
    narrow(value, &to[i]);
  }
}

// Which of (places, channels) a thread takes: SIZE neighbouring channels, always the same ones, which are of one group, of every so many places.
template <int SIZE>
struct Columns {
  const int packs, together, pack, place;
  __device__ __forceinline__ Columns(int channels)
      : packs(channels / SIZE), together(THREADS / packs), pack(threadIdx.x % packs), place(threadIdx.x / packs) {}
  __device__ __forceinline__ bool has_any() const { return place < together; }
};

// input: (B, places, channels); sums: (B, groups, parts). Grid (parts, B), 512 threads, which are no fewer than channels / SIZE.
template <int SIZE, typename T>
static __device__ void part_sums_last(const T *__restrict__ input, float2 *__restrict__ sums, int channels, int groups, int places) {
  __shared__ float2 of_thread[THREADS];
  const Columns<SIZE> columns(channels);
  const int in_group = channels / groups;
  const int begin = (int)((int64_t)places * blockIdx.x / gridDim.x), end = (int)((int64_t)places * (blockIdx.x + 1) / gridDim.x);
  const T *from = input + (size_t)blockIdx.y * places * channels;
  float2 sum = make_float2(0, 0);
  if (columns.has_any()) {
    const float around = wide(from[columns.pack * SIZE / in_group * in_group]);
#pragma unroll LOADS
    for (int place = begin + columns.place; place < end; place += columns.together) {
      const Neighbours<T, SIZE> values = loaded<SIZE>(from + (size_t)place * channels + columns.pack * SIZE);
#pragma unroll
      for (int j = 0; j < SIZE; j++) add_difference(sum, wide(values.values[j]) - around);
    }
  }
  of_thread[threadIdx.x] = sum;
  __syncthreads();
  const int packs_of_group = in_group / SIZE;
  for (int group = threadIdx.x; group < groups; group += THREADS) {
    float2 all = make_float2(0, 0);
    for (int place = 0; place < columns.together; place++)
      for (int pack = 0; pack < packs_of_group; pack++) {
        const float2 one = of_thread[place * columns.packs + group * packs_of_group + pack];
        all.x += one.x;
        all.y += one.y;
      }
    sums[((size_t)blockIdx.y * groups + group) * gridDim.x + blockIdx.x] = all;
  }
}

template <int SIZE, typename T>
static __device__ void norm_part_last(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, const float2 *__restrict__ sums,
                                      T *__restrict__ out, int channels, int groups, int places, float eps, int silu) {
  __shared__ float2 of_group[THREADS];
  const int in_group = channels / groups;
  const size_t image = (size_t)blockIdx.y * places * channels;
  for (int group = threadIdx.x / 32; group < groups; group += THREADS / 32) {
    const float2 found = statistics(sums + ((size_t)blockIdx.y * groups + group) * gridDim.x, gridDim.x, wide(input[image + group * in_group]),
                                    (float)in_group * places, eps);
    if (threadIdx.x % 32 == 0) of_group[group] = found;
  }
  __syncthreads();
  const Columns<SIZE> columns(channels);
  if (!columns.has_any()) return;
  const int channel = columns.pack * SIZE;
  const float2 found = of_group[channel / in_group];
  float factor[SIZE], summand[SIZE];
#pragma unroll
  for (int j = 0; j < SIZE; j++) {
    factor[j] = found.y * wide(weight[channel + j]);
    summand[j] = wide(bias[channel + j]);
  }
  const int begin = (int)((int64_t)places * blockIdx.x / gridDim.x), end = (int)((int64_t)places * (blockIdx.x + 1) / gridDim.x);
  norm_places<SIZE>(input + image + channel, out + image + channel, begin + columns.place, columns.together, end, channels, found.x, factor, summand, silu);
}

// By how many neighbours of a group go together.
#define BY_GROUP(FUNCTION, T, ...) \
  if (channels / groups % 8 == 0 && sizeof(T) == 2) FUNCTION<16 / sizeof(T)>(__VA_ARGS__); \
  else if (channels / groups % 4 == 0) FUNCTION<4>(__VA_ARGS__); \
  else if (channels / groups % 2 == 0) FUNCTION<2>(__VA_ARGS__); \
  else FUNCTION<1>(__VA_ARGS__);
#define KERNEL(NAME, T) \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_##NAME(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, T *__restrict__ out, int channels, int groups, int places, float eps, int silu) { \
    norm(input, weight, bias, out, channels, groups, places, eps, silu); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_last_##NAME(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, T *__restrict__ out, int channels, int groups, int places, float eps, int silu) { \
    BY_GROUP(norm_last, T, input, weight, bias, out, channels, groups, places, eps, silu) \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) group_sums_##NAME(const T *__restrict__ input, float2 *__restrict__ sums, int channels, int groups, int places) { \
    part_sums(input, sums, channels, groups, places); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) group_sums_last_##NAME(const T *__restrict__ input, float2 *__restrict__ sums, int channels, int groups, int places) { \
    BY_GROUP(part_sums_last, T, input, sums, channels, groups, places) \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_part_##NAME(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, const float2 *__restrict__ sums, T *__restrict__ out, int channels, int groups, int places, float eps, int silu) { \
    norm_part(input, weight, bias, sums, out, channels, groups, places, eps, silu); \
  } \
  extern "C" __global__ void __launch_bounds__(THREADS) \
      group_norm_part_last_##NAME(const T *__restrict__ input, const T *__restrict__ weight, const T *__restrict__ bias, const float2 *__restrict__ sums, T *__restrict__ out, int channels, int groups, int places, float eps, int silu) { \
    BY_GROUP(norm_part_last, T, input, weight, bias, sums, out, channels, groups, places, eps, silu) \
  }
KERNEL(f32, float)
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)

// Attention without a matrix of scores (Dao 2023, FlashAttention-2) on tensor cores: softmax(query·keyᵀ·scale)·value.
//
// A block is 64 queries of one head: four warps with 16 queries each. Keys and values come in pieces of 32 through shared memory. Scores, sums and
// outputs stay in registers, in f32; only the weights of the second product are rounded to the tensors' format.
// Who holds what of a 16x8x16 product: PTX manual, "Matrix fragments for mma.m16n8k16".
#include "numbers.cuh"

constexpr int WARPS = 4;
constexpr int QUERIES = 16;  // of a warp
constexpr int PLACES = 32;   // keys and values at once
constexpr float NOTHING = -1e30f;

static __device__ __forceinline__ uint32_t in_shared(const void *address) { return (uint32_t)__cvta_generic_to_shared(address); }

// 16 bytes from global to shared memory, or zeros.
static __device__ __forceinline__ void copy_or_zero(void *to, const void *from, bool copies) {
  const int bytes = copies ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(in_shared(to)), "l"(from), "r"(bytes));
}

static __device__ __forceinline__ void load_pair(uint32_t (&pair)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(pair[0]), "=r"(pair[1]) : "r"(in_shared(row)));
}

static __device__ __forceinline__ void load_pair_transposed(uint32_t (&pair)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(pair[0]), "=r"(pair[1]) : "r"(in_shared(row)));
}

#define MULTIPLY_ADD(FORMAT) \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." FORMAT "." FORMAT ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
static __device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) { MULTIPLY_ADD("f16"); }
static __device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) { MULTIPLY_ADD("bf16"); }

template <typename T> static __device__ __forceinline__ uint32_t packed(float first, float second) {
  T pair[2];
  narrow(first, &pair[0]);
  narrow(second, &pair[1]);
  uint32_t bits;
  memcpy(&bits, pair, sizeof bits);
  return bits;
}

// Over the four lanes that hold a row.
static __device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}
static __device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}

// query, out: (B, tokens, heads, width); key, value: (B, places, heads, width); all 16-byte aligned, width a multiple of 8 and at most WIDTH. Tokens of
// query lie query_stride values apart, places of key and value place_stride: more than their heads where something lies between; multiples of 8.
// scale: of the scores, times log2(e). causal: a query sees the places up to its own. Grid (tokens / 64, heads, B), 128 threads.
template <typename T, int WIDTH>
static __device__ void attend(const T *query, const T *key, const T *value, T *out, int tokens, int places, int heads, int width, int causal,
                              float scale, int query_stride, int place_stride) {
  // A row is 16 bytes longer than its values: the eight rows of a matrix then lie in different banks.
  constexpr int STRIDE = WIDTH + 8;
  __shared__ __align__(16) T keys[PLACES * STRIDE];
  __shared__ __align__(16) T values[PLACES * STRIDE];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = lane / 4, pair = lane % 4 * 2;
  const int row_stride = heads * width;
  const int first_query = (blockIdx.x * WARPS + warp) * QUERIES;
  const size_t query_base = (size_t)blockIdx.z * tokens * query_stride + blockIdx.y * width;
  const size_t key_base = (size_t)blockIdx.z * places * place_stride + blockIdx.y * width;
  const size_t out_base = (size_t)blockIdx.z * tokens * row_stride + blockIdx.y * width;

  uint32_t queries[WIDTH / 16][4];
#pragma unroll
  for (int x = 0; x < WIDTH / 16; x++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int token = first_query + row + (i & 1) * 8, column = x * 16 + pair + (i >> 1) * 8;
      const bool is_there = token < tokens && column < width;
      queries[x][i] = is_there ? *(const uint32_t *)(query + query_base + (size_t)token * query_stride + column) : 0;
    }

  float output[WIDTH / 8][4] = {}, largest[2] = {NOTHING, NOTHING}, sum[2] = {0, 0};
  const int block_end = (blockIdx.x + 1) * WARPS * QUERIES;
  const int end = causal && block_end < places ? block_end : places;
  for (int first = 0; first < end; first += PLACES) {
    __syncthreads();
    for (int i = threadIdx.x; i < PLACES * WIDTH / 8; i += blockDim.x) {
      const int place = i / (WIDTH / 8), column = i % (WIDTH / 8) * 8;
      const bool is_there = first + place < places && column < width;
      const size_t from = is_there ? key_base + (size_t)(first + place) * place_stride + column : key_base;
      copy_or_zero(&keys[place * STRIDE + column], key + from, is_there);
      copy_or_zero(&values[place * STRIDE + column], value + from, is_there);
    }
    asm volatile("cp.async.wait_all;");
    __syncthreads();

    float scores[PLACES / 8][4] = {};
#pragma unroll
    for (int n = 0; n < PLACES / 8; n++)
#pragma unroll
      for (int x = 0; x < WIDTH / 16; x++) {
        uint32_t b[2];
        load_pair(b, &keys[(n * 8 + lane % 8) * STRIDE + x * 16 + lane / 8 % 2 * 8]);
        multiply_add(scores[n], queries[x], b, T());
      }

    float top[2] = {largest[0], largest[1]};
#pragma unroll
    for (int n = 0; n < PLACES / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int place = first + n * 8 + pair + (i & 1), token = first_query + row + (i >> 1) * 8;
        const bool is_seen = place < places && (!causal || place <= token);
        scores[n][i] = is_seen ? scores[n][i] * scale : NOTHING;
        top[i >> 1] = fmaxf(top[i >> 1], scores[n][i]);
      }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      top[half] = row_max(top[half]);
      // What was summed so far, relative to the new largest score.
      const float kept = exp2f(largest[half] - top[half]);
      sum[half] *= kept;
#pragma unroll
      for (int x = 0; x < WIDTH / 8; x++) {
        output[x][2 * half] *= kept;
        output[x][2 * half + 1] *= kept;
      }
      largest[half] = top[half];
    }
#pragma unroll
    for (int n = 0; n < PLACES / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scores[n][i] = exp2f(scores[n][i] - largest[i >> 1]);
        sum[i >> 1] += scores[n][i];
      }

#pragma unroll
    for (int y = 0; y < PLACES / 16; y++) {
      uint32_t weights[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float *from = &scores[2 * y + (i >> 1)][(i & 1) * 2];
        weights[i] = packed<T>(from[0], from[1]);
      }
#pragma unroll
      for (int x = 0; x < WIDTH / 8; x++) {
        uint32_t b[2];
        load_pair_transposed(b, &values[(y * 16 + lane % 16) * STRIDE + x * 8]);
        multiply_add(output[x], weights, b, T());
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float all = row_sum(sum[half]);
    const int token = first_query + row + half * 8;
#pragma unroll
    for (int x = 0; x < WIDTH / 8; x++)
      if (token < tokens && x * 8 < width)
        *(uint32_t *)(out + out_base + (size_t)token * row_stride + x * 8 + pair) =
            packed<T>(output[x][2 * half] / all, output[x][2 * half + 1] / all);
  }
}

#define ATTENTION(NAME, T, WIDTH) \
  extern "C" __global__ void __launch_bounds__(WARPS * 32) \
      attend_##WIDTH##_##NAME(const T *query, const T *key, const T *value, T *out, int tokens, int places, int heads, int width, int causal, \
                              float scale, int query_stride, int place_stride) { \
    attend<T, WIDTH>(query, key, value, out, tokens, places, heads, width, causal, scale, query_stride, place_stride); \
  }
#define WIDTHS(NAME, T) \
  ATTENTION(NAME, T, 16) ATTENTION(NAME, T, 32) ATTENTION(NAME, T, 48) ATTENTION(NAME, T, 64) ATTENTION(NAME, T, 80) ATTENTION(NAME, T, 96) \
  ATTENTION(NAME, T, 128) ATTENTION(NAME, T, 160)
WIDTHS(f16, __half)
WIDTHS(bf16, __nv_bfloat16)

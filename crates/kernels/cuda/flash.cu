// Attention without a matrix of scores (Dao 2023, FlashAttention-2) on tensor cores: softmax(query·keyᵀ·scale)·value.
//
// A block has four warps and one head; a warp has one or two tiles of 16 queries. Keys and values come in pieces through shared memory: values while
// scores are computed, the next keys while values are summed. Scores, sums and outputs stay in registers, in f32; only the weights of the second product
// are rounded to the tensors' format.
#include "tensor_cores.cuh"

constexpr int TILE = 16;
// A row's weights are powers relative to a score that its largest may exceed by so much before all that was summed is scaled anew: weights up to 2^8 are in the
// range of halves, and as exact there (Zadouri et al. 2026, FlashAttention-4, "conditional rescaling").
constexpr float HEADROOM = 8;
// What every score exceeds, and from which nothing but an infinite one is infinitely far: a row may begin with places that it does not see.
constexpr float NONE_YET = -1e38f;

// How heads of WIDTH values are computed, with 255 registers a thread and 48 KB of shared memory at most.
template <int WIDTH> struct Plan {
  // Products are 16 deep.
  static constexpr int STEPS = (WIDTH + 15) / 16;
  static constexpr int CHUNKS = STEPS * 2;
  static constexpr int ROW = STEPS * 16;
  // Two tiles share what a warp reads of keys and values. Where heads are 80 or 160 wide there are few tokens: more blocks are worth more.
  static constexpr int TILES = WIDTH == 80 || WIDTH == 160 ? 1 : 2;
  static constexpr int QUERIES = WARPS * TILES * TILE;
  // Where outputs take half of the registers, queries are read again for each piece.
  static constexpr bool KEEPS_QUERIES = TILES == 1 || WIDTH <= 64;
  static constexpr int PLACES = KEEPS_QUERIES ? 64 : 32;
  // Of a multiprocessor: what its registers are enough for.
  static constexpr int BLOCKS = WIDTH <= 32 || WIDTH == 80 ? 3 : 2;
};

static __device__ __forceinline__ float two_to_the(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
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

// What a warp has of its queries: outputs and the sums of weights so far, relative to two to the power of `reference`, a score.
template <typename T, int WIDTH> struct Attended {
  using P = Plan<WIDTH>;
  static constexpr int TILES = P::TILES, PLACES = P::PLACES, COLUMNS = WIDTH / 8;
  float output[TILES][COLUMNS][4] = {}, reference[TILES][2], sum[TILES][2] = {};
  float scores[TILES][PLACES / 8][4];

  __device__ __forceinline__ Attended() {
#pragma unroll
    for (int t = 0; t < TILES; t++) reference[t][0] = reference[t][1] = NONE_YET;
  }

  // Scores of a piece's first `places` keys. `queries(x, a)` gives the queries' values of step x.
  template <bool WHOLE, typename Queries>
  __device__ __forceinline__ void score(const Queries &queries, const Row<P::CHUNKS, 2> &keys, int places) {
#pragma unroll
    for (int x = 0; x < P::STEPS; x++) {
      uint32_t a[TILES][4];
      queries(x, a);
#pragma unroll
      for (int n = 0; n < PLACES / 8; n += 2) {
        if (!WHOLE && n * 8 >= places) continue;
        uint32_t b[4];
        load_four(b, keys[x * 2] + n * 8 * P::CHUNKS * 16);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          if (x == 0) {
            multiply(scores[t][n], a[t], b[0], b[1], T());
            multiply(scores[t][n + 1], a[t], b[2], b[3], T());
          } else {
            multiply_add(scores[t][n], a[t], b[0], b[1], T());
            multiply_add(scores[t][n + 1], a[t], b[2], b[3], T());
          }
        }
      }
    }
  }

  // Leaves out places that are not there; where it is `causal`, those behind the query's own as well. `first`: the lane's first place and query.
  __device__ __forceinline__ void mask(int first_place, int first_query, int places, bool causal) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int n = 0; n < PLACES / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int place = first_place + n * 8 + (i & 1), query = first_query + t * TILE + (i >> 1) * 8;
          if (place >= places || (causal && place > query)) scores[t][n][i] = -INFINITY;
        }
  }

  // Makes weights of the scores.
  __device__ __forceinline__ void weigh(float scale) {
    float top[TILES][2];
    bool exceeds = false;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float &largest = top[t][half];
        largest = fmaxf(scores[t][0][half * 2], scores[t][0][half * 2 + 1]);
#pragma unroll
        for (int n = 1; n < PLACES / 8; n++) largest = fmaxf(largest, fmaxf(scores[t][n][half * 2], scores[t][n][half * 2 + 1]));
        largest = row_max(largest);
        exceeds |= (largest - reference[t][half]) * scale > HEADROOM;
      }
    if (__any_sync(~0u, exceeds)) rescale(top, scale);
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float below = -reference[t][half] * scale;
#pragma unroll
        for (int n = 0; n < PLACES / 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float &score = scores[t][n][half * 2 + i];
            score = two_to_the(fmaf(score, scale, below));
            sum[t][half] += score;
          }
      }
  }

  // A row goes by its own scores: what other rows of the warp need changes no bit of it.
  __device__ __forceinline__ void rescale(const float (&top)[TILES][2], float scale) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float above = (top[t][half] - reference[t][half]) * scale;
        const float remains = above > HEADROOM ? two_to_the(-above) : 1;
        if (above > HEADROOM) reference[t][half] = top[t][half];
        sum[t][half] *= remains;
#pragma unroll
        for (int x = 0; x < COLUMNS; x++) {
          output[t][x][half * 2] *= remains;
          output[t][x][half * 2 + 1] *= remains;
        }
      }
  }

  // Adds what the weights make of a piece's first `places` values.
  template <bool WHOLE> __device__ __forceinline__ void add(const Row<P::CHUNKS, 2> &values, int places) {
#pragma unroll
    for (int y = 0; y < PLACES / 16; y++) {
      if (!WHOLE && y * 16 >= places) continue;
      const int at = y * 16 * P::CHUNKS * 16;
      uint32_t weights[TILES][4];
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float *from = &scores[t][2 * y + (i >> 1)][(i & 1) * 2];
          weights[t][i] = packed<T>(from[0], from[1]);
        }
#pragma unroll
      for (int x = 0; x + 1 < COLUMNS; x += 2) {
        uint32_t b[4];
        load_four_transposed(b, values[x] + at);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          multiply_add(output[t][x], weights[t], b[0], b[1], T());
          multiply_add(output[t][x + 1], weights[t], b[2], b[3], T());
        }
      }
      if (COLUMNS % 2 != 0) {
        uint32_t b[2];
        load_two_transposed(b, values[COLUMNS - 1] + at);
#pragma unroll
        for (int t = 0; t < TILES; t++) multiply_add(output[t][COLUMNS - 1], weights[t], b[0], b[1], T());
      }
    }
  }

  // The lane's first value of the head's output is at `out`, of so many queries.
  __device__ __forceinline__ void store(T *out, int queries, int width, int stride) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float part = 1 / row_sum(sum[t][half]);
        const int query = t * TILE + half * 8;
#pragma unroll
        for (int x = 0; x < COLUMNS; x++)
          if (query < queries && x * 8 < width)
            *(uint32_t *)(out + (size_t)query * stride + x * 8) = packed<T>(output[t][x][2 * half] * part, output[t][x][2 * half + 1] * part);
      }
  }
};

// query, out: (B, tokens, heads, width); key, value: (B, places, heads, width); all 16-byte aligned, width a multiple of 8 and at most WIDTH. Tokens of
// query lie query_stride values apart, places of key and value place_stride: more than their heads where something lies between; multiples of 8.
// scale: of the scores, times log2(e); positive. causal: a query sees the places up to its own. Grid (tokens / QUERIES, heads, B), 128 threads.
template <typename T, int WIDTH>
static __device__ void attend(const T *query, const T *key, const T *value, T *out, int tokens, int places, int heads, int width, int causal,
                              float scale, int query_stride, int place_stride) {
  using P = Plan<WIDTH>;
  constexpr int TILES = P::TILES, PLACES = P::PLACES;
  constexpr int VALUES = PLACES * P::ROW;
  // Keys, and values behind them.
  __shared__ __align__(128) T pieces[2 * VALUES];
  __shared__ __align__(128) T kept[P::KEEPS_QUERIES ? 8 : P::QUERIES * P::ROW];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = lane / 4, pair = lane % 4 * 2;
  const int block_query = blockIdx.x * P::QUERIES, warp_query = block_query + warp * TILES * TILE;
  const bool works = warp_query < tokens;
  query += (size_t)blockIdx.z * tokens * query_stride + blockIdx.y * width;
  key += (size_t)blockIdx.z * places * place_stride + blockIdx.y * width;
  value += (size_t)blockIdx.z * places * place_stride + blockIdx.y * width;
  out += ((size_t)blockIdx.z * tokens * heads + blockIdx.y) * width;

  const Copier<T, PLACES, P::CHUNKS> copier(pieces, place_stride, width);
  copier.begin(key, 0, places);
  end_group();
  uint32_t own[P::KEEPS_QUERIES ? P::STEPS : 1][TILES][4];
  if (P::KEEPS_QUERIES) {
#pragma unroll
    for (int x = 0; x < (P::KEEPS_QUERIES ? P::STEPS : 1); x++)
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int token = warp_query + t * TILE + row + (i & 1) * 8, column = x * 16 + pair + (i >> 1) * 8;
          const bool is_there = token < tokens && column < width;
          own[x][t][i] = is_there ? *(const uint32_t *)(query + (size_t)token * query_stride + column) : 0;
        }
  } else {
    Copier<T, P::QUERIES, P::CHUNKS>(kept, query_stride, width).begin(query, block_query, tokens);
    end_group();
  }
  const Row<P::CHUNKS, 2> kept_row(kept, warp * TILES * TILE + lane % 16, lane / 16);
  const auto queries = [&](int x, uint32_t (&a)[TILES][4]) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
      if (P::KEEPS_QUERIES) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[t][i] = own[P::KEEPS_QUERIES ? x : 0][t][i];
      } else {
        load_four(a[t], kept_row[x * 2] + t * TILE * P::CHUNKS * 16);
      }
  };

  const Row<P::CHUNKS, 2> key_row(pieces, lane / 16 * 8 + lane % 8, lane / 8 % 2), value_row(pieces + VALUES, lane % 16, lane / 16);
  Attended<T, WIDTH> attended;
  const int last_query = block_query + P::QUERIES;
  const int end = causal && last_query < places ? last_query : places;
  for (int first = 0; first < end; first += PLACES) {
    const bool whole = first + PLACES <= end && !(causal && first + PLACES > warp_query);
    // Keys are here, and no warp needs the values before any more.
    await_groups<0>();
    __syncthreads();
    copier.begin(value, first, places, 0, VALUES * 2);
    end_group();
    if (works) {
      if (whole) {
        attended.template score<true>(queries, key_row, PLACES);
      } else {
        attended.template score<false>(queries, key_row, places - first);
        attended.mask(first + pair, warp_query + row, places, causal);
      }
      attended.weigh(scale);
    }
    // Values are here, and no warp needs these keys any more.
    await_groups<0>();
    __syncthreads();
    if (first + PLACES < end) copier.begin(key, first + PLACES, places);
    end_group();
    if (works) {
      if (whole)
        attended.template add<true>(value_row, PLACES);
      else
        attended.template add<false>(value_row, places - first);
    }
  }
  attended.store(out + (size_t)(warp_query + row) * heads * width + pair, tokens - warp_query - row, width, heads * width);
}

// The build compiles each format and width by itself, for drivers translate a module whole: a model has one or two widths.
#define NAME_OF(WIDTH, NAME) attend_##WIDTH##_##NAME
#define ATTENTION(NAME, T, WIDTH) \
  extern "C" __global__ void __launch_bounds__(WARPS * WARP, Plan<WIDTH>::BLOCKS) \
      NAME_OF(WIDTH, NAME)(const T *query, const T *key, const T *value, T *out, int tokens, int places, int heads, int width, int causal, \
                           float scale, int query_stride, int place_stride) { \
    attend<T, WIDTH>(query, key, value, out, tokens, places, heads, width, causal, scale, query_stride, place_stride); \
  }
ATTENTION(f16, __half, HEAD_WIDTH)
ATTENTION(bf16, __nv_bfloat16, HEAD_WIDTH)

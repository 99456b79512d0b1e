// Products of tiles on tensor cores: 16x8x16, halves in, sums in f32. Who holds what: PTX manual, "Matrix fragments for mma.m16n8k16".
#pragma once
#include "numbers.cuh"

constexpr int WARP = 32;
constexpr int WARPS = 4;  // of a block

static __device__ __forceinline__ uint32_t in_shared(const void *address) { return (uint32_t)__cvta_generic_to_shared(address); }

// A row of a matrix in shared memory. Its rows lie behind each other without gaps, CHUNKS of 16 bytes each. A row's chunks change places, so that the same chunk of
// eight rows that follow each other lies in eight different banks: chunk c is where c ^ (row's turn) would be. `own`: a chunk below STEP, a power of two. Chunk own + c, for
// any c that is a multiple of STEP, then lies at one of few addresses plus what the compiler knows.
template <int CHUNKS, int STEP> struct Row {
  // Chunks among which places change: the banks come round every 128 bytes, or sooner for rows that begin at odd multiples of 64 or 32.
  static constexpr int AMONG = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
  uint32_t bases[AMONG > STEP ? AMONG / STEP : 1];

  __device__ __forceinline__ Row(const void *matrix, int row, int own) {
    const int turn = AMONG == 8 ? row & 7 : AMONG == 4 ? row >> 1 & 3 : row >> 2 & 1;
    const uint32_t start = in_shared(matrix) + row * CHUNKS * 16;
#pragma unroll
    for (int c = 0; c == 0 || c < AMONG; c += STEP) bases[c / STEP] = start + ((own ^ turn ^ c) & (AMONG - 1)) * 16 + (own & ~(AMONG - 1)) * 16;
  }
  // The address of chunk own + c.
  __device__ __forceinline__ uint32_t operator[](int c) const { return bases[c % AMONG / STEP] + c / AMONG * AMONG * 16; }
};

// 16 bytes from global to shared memory, or zeros.
static __device__ __forceinline__ void copy_or_zero(uint32_t to, const void *from, bool copies) {
  const int bytes = copies ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// A thread's copies since the last group are one, which it waits for.
static __device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// For all groups but the youngest LEFT.
template <int LEFT> static __device__ __forceinline__ void await_groups() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Copies ROWS rows of matrices in global memory to shared memory, with zeros beyond their rows and columns.
template <typename T, int ROWS, int CHUNKS> struct Copier {
  // Threads that copy a row together: what eight of them write at once lies in different banks.
  static constexpr int SHARE = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
  static constexpr int AT_ONCE = WARPS * WARP / SHARE;
  static_assert(CHUNKS % SHARE == 0 && ROWS % AT_ONCE == 0, "threads that copy no more than the rows there are");
  int stride, row, first_column, columns;
  Row<CHUNKS, SHARE> to;

  // Rows of the matrices lie `stride` values apart, and have so many columns: multiples of 16 bytes, both of them.
  __device__ __forceinline__ Copier(T *to, int stride, int columns)
      : stride(stride), row(threadIdx.x / SHARE), first_column(threadIdx.x % SHARE * 8), columns(columns), to(to, threadIdx.x / SHARE, threadIdx.x % SHARE) {}

  // From row `first` and column `column` on, of `count` rows; `offset`: bytes by which the matrix in shared memory is moved.
  __device__ __forceinline__ void begin(const T *from, int first, int count, int column = 0, int offset = 0) const {
#pragma unroll
    for (int i = 0; i < ROWS; i += AT_ONCE) {
      const bool is_there = first + row + i < count;
      const T *of_row = from + (size_t)(is_there ? first + row + i : 0) * stride + column + first_column;
#pragma unroll
      for (int c = 0; c < CHUNKS; c += SHARE) {
        const bool copies = is_there && column + first_column + c * 8 < columns;
        copy_or_zero(to[c] + i * CHUNKS * 16 + offset, copies ? of_row + c * 8 : from, copies);
      }
    }
  }
};

// Four matrices of 8x8, by the addresses of rows that lanes give, eight for each.
static __device__ __forceinline__ void load_four(uint32_t (&pairs)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
               : "r"(row)
               : "memory");
}
static __device__ __forceinline__ void load_four_transposed(uint32_t (&pairs)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
               : "r"(row)
               : "memory");
}
// Two, by the addresses of the first sixteen lanes.
static __device__ __forceinline__ void load_two_transposed(uint32_t (&pairs)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(pairs[0]), "=r"(pairs[1]) : "r"(row) : "memory");
}

#define PRODUCTS(T, FORMAT) \
  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." FORMAT "." FORMAT ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
  } \
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." FORMAT "." FORMAT ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};" \
        : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3]) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f)); \
  }
PRODUCTS(__half, "f16")
PRODUCTS(__nv_bfloat16, "bf16")

template <typename T> static __device__ __forceinline__ uint32_t packed(float first, float second) {
  T pair[2];
  narrow(first, &pair[0]);
  narrow(second, &pair[1]);
  uint32_t bits;
  memcpy(&bits, pair, sizeof bits);
  return bits;
}

// A gated layer as one product on tensor cores: (input·valueᵀ + its bias) · activation(input·gateᵀ + its bias), in f32 and rounded once. Values and gates,
// which are twice what comes out, are never in memory.
//
// A block makes 128 rows by 64 columns, each of its four warps 64 by 32. Pieces of 32 of the depth come through shared memory, two ahead of their use.
#include "gates.cuh"
#include "tensor_cores.cuh"

constexpr int ROWS = 128;
constexpr int COLUMNS = 64;
constexpr int DEPTH = 32;
constexpr int STAGES = 3;
constexpr int CHUNKS = DEPTH / 8;
constexpr int WARP_ROWS = ROWS / 2;
constexpr int WARP_COLUMNS = COLUMNS / 2;
// Rows of a piece: the input's, the values' weights', the gates'.
constexpr int PIECE = ROWS + 2 * COLUMNS;
constexpr int PIECE_BYTES = PIECE * DEPTH * 2;

// sums += a piece's products; `inputs`, `weights`: the lane's rows of the first piece, which is `offset` bytes before this one.
template <typename T>
static __device__ __forceinline__ void multiply_piece(float (&sums)[2][WARP_ROWS / 16][WARP_COLUMNS / 8][4], const Row<CHUNKS, 2> &inputs,
                                                      const Row<CHUNKS, 2> &weights, int offset) {
#pragma unroll
  for (int x = 0; x < DEPTH / 16; x++) {
    uint32_t a[WARP_ROWS / 16][4];
#pragma unroll
    for (int m = 0; m < WARP_ROWS / 16; m++) load_four(a[m], inputs[x * 2] + m * 16 * CHUNKS * 16 + offset);
#pragma unroll
    for (int part = 0; part < 2; part++)
#pragma unroll
      for (int n = 0; n < WARP_COLUMNS / 8; n += 2) {
        uint32_t b[4];
        load_four(b, weights[x * 2] + (part * COLUMNS + n * 8) * CHUNKS * 16 + offset);
#pragma unroll
        for (int m = 0; m < WARP_ROWS / 16; m++) {
          multiply_add(sums[part][m][n], a[m], b[0], b[1], T());
          multiply_add(sums[part][m][n + 1], a[m], b[2], b[3], T());
        }
      }
  }
}

// input: (rows, depth); value, gate: (width, depth); their biases: (width), or null; out: (rows, width). All 16-byte aligned, depth and width multiples
// of 8. Grid (rows / ROWS, width / COLUMNS), 128 threads.
template <Gate GATE, typename T>
static __device__ void gated(const T *input, const T *value, const T *gate, const T *value_bias, const T *gate_bias, T *out, int rows, int depth,
                             int width) {
  __shared__ __align__(128) T pieces[STAGES * PIECE * DEPTH];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int first_row = blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS;
  const int warp_row = warp / 2 * WARP_ROWS, warp_column = warp % 2 * WARP_COLUMNS;
  const Copier<T, ROWS, CHUNKS> inputs(pieces, depth, depth);
  const Copier<T, COLUMNS, CHUNKS> weights(pieces + ROWS * DEPTH, depth, depth);
  const int steps = (depth + DEPTH - 1) / DEPTH;
  const auto begin = [&](int step) {
    if (step < steps) {
      const int column = step * DEPTH, offset = step % STAGES * PIECE_BYTES;
      inputs.begin(input, first_row, rows, column, offset);
      weights.begin(value, first_column, width, column, offset);
      weights.begin(gate, first_column, width, column, offset + COLUMNS * DEPTH * 2);
    }
    end_group();
  };

  float sums[2][WARP_ROWS / 16][WARP_COLUMNS / 8][4] = {};
  const Row<CHUNKS, 2> input_row(pieces, warp_row + lane % 16, lane / 16);
  const Row<CHUNKS, 2> weight_row(pieces, ROWS + warp_column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  for (int step = 0; step < STAGES - 1; step++) begin(step);
  for (int step = 0; step < steps; step++) {
    // This piece is here, and no warp needs the one before it any more.
    await_groups<STAGES - 2>();
    __syncthreads();
    begin(step + STAGES - 1);
    multiply_piece<T>(sums, input_row, weight_row, step % STAGES * PIECE_BYTES);
  }

  // Through shared memory, so that threads write 16 bytes each, next to each other.
  __syncthreads();
#pragma unroll
  for (int n = 0; n < WARP_COLUMNS / 8; n++) {
    const int in_block = warp_column + n * 8 + lane % 4 * 2, column = first_column + in_block;
    float biases[2][2] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (value_bias && column + i < width) biases[0][i] = wide(value_bias[column + i]);
      if (gate_bias && column + i < width) biases[1][i] = wide(gate_bias[column + i]);
    }
#pragma unroll
    for (int m = 0; m < WARP_ROWS / 16; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float made[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
          made[i] = (sums[0][m][n][half * 2 + i] + biases[0][i]) * opened<GATE>(sums[1][m][n][half * 2 + i] + biases[1][i]);
        const int row = warp_row + m * 16 + half * 8 + lane / 4;
        *(uint32_t *)(pieces + row * COLUMNS + (in_block ^ (row & 7) * 8)) = packed<T>(made[0], made[1]);
      }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS * COLUMNS / 8; i += WARPS * WARP) {
    const int row = i / (COLUMNS / 8), in_block = i % (COLUMNS / 8) * 8;
    if (first_row + row < rows && first_column + in_block < width)
      *(uint4 *)(out + (size_t)(first_row + row) * width + first_column + in_block) = *(const uint4 *)(pieces + row * COLUMNS + (in_block ^ (row & 7) * 8));
  }
}

// Two blocks of 128 threads with 255 registers and 48 KB are what every multiprocessor from 8.0 on holds.
#define KERNEL(GATE, NAME, T) \
  extern "C" __global__ void __launch_bounds__(WARPS * WARP, 2) \
      gated_##GATE##_##NAME(const T *input, const T *value, const T *gate, const T *value_bias, const T *gate_bias, T *out, int rows, int depth, int width) { \
    gated<Gate::GATE>(input, value, gate, value_bias, gate_bias, out, rows, depth, width); \
  }
#define KERNELS(NAME, T) KERNEL(gelu, NAME, T) KERNEL(gelu_tanh, NAME, T) KERNEL(silu, NAME, T)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)

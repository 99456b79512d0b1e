// What moves images whose channels are last, 16 bytes at a time.
#include "grid.cuh"

// first: (rows, first_packs); second: (rows, second_packs); out: (rows, first_packs + second_packs), in packs of 16 bytes. Blocks of 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS)
    join_last(const uint4 *first, const uint4 *second, uint4 *out, int64_t rows, int first_packs, int second_packs) {
  const int packs = first_packs + second_packs;
  for (int64_t i = thread_of_grid(); i < rows * packs; i += threads_of_grid()) {
    const int64_t row = i / packs;
    const int pack = (int)(i - row * packs);
    out[i] = pack < first_packs ? first[row * first_packs + pack] : second[row * second_packs + pack - first_packs];
  }
}

// input: (B, height, width, packs); out: (B, 2 height, 2 width, packs), every place of it the one that it lies in; rows: B 2 height. Blocks of 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) double_last(const uint4 *input, uint4 *out, int64_t rows, int width, int packs) {
  const int64_t row_packs = 2 * (int64_t)width * packs;
  for (int64_t i = thread_of_grid(); i < rows * row_packs; i += threads_of_grid()) {
    const int64_t row = i / row_packs;
    const int place = (int)(i - row * row_packs);
    const int x = place / packs;
    out[i] = input[(row / 2 * width + x / 2) * packs + place - x * packs];
  }
}

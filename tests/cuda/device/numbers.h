// Products in f32 that GEMMs and convolutions of all formats come down to.
#pragma once
#include <immintrin.h>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
static inline float h2f(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
static inline uint16_t f2h(float f) { return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(f), 0)); }
static inline float b2f(uint16_t b) {
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint16_t f2b(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline float e2f(uint8_t v) {
    int s = v >> 7, e = (v >> 3) & 15, m = v & 7;
    float r = e == 15 && m == 7 ? NAN : e == 0 ? ldexpf((float)m, -9) : ldexpf(1.0f + m / 8.0f, e - 7);
    return s ? -r : r;
}
enum Format { F32, F16, BF16, E4M3, F64 };
static inline int size_of(Format f) { return f == F64 ? 8 : f == F32 ? 4 : f == E4M3 ? 1 : 2; }
static inline float get(const void *p, Format f, size_t i) {
    switch (f) {
    case F32: return ((const float *)p)[i];
    case F16: return h2f(((const uint16_t *)p)[i]);
    case BF16: return b2f(((const uint16_t *)p)[i]);
    case E4M3: return e2f(((const uint8_t *)p)[i]);
    default: return (float)((const double *)p)[i];
    }
}
static inline void put(void *p, Format f, size_t i, float v) {
    switch (f) {
    case F32: ((float *)p)[i] = v; break;
    case F16: ((uint16_t *)p)[i] = f2h(v); break;
    case BF16: ((uint16_t *)p)[i] = f2b(v); break;
    default: ((double *)p)[i] = v;
    }
}
// c (n, m) = b (n, k) * a (k, m), all row by row.
// `in_half`: sums are rounded to f16 after every 16 products, as tensor cores do that sum in f16.
inline void product(size_t m, size_t n, size_t k, const float *a, const float *b, float *c, bool in_half = false) {
    constexpr size_t W = 64, R = 4;
    for (size_t j = 0; j < m; j += W) {
        size_t w = m - j < W ? m - j : W;
        for (size_t i = 0; i < n; i += R) {
            size_t r = n - i < R ? n - i : R;
            float sum[R][W];
            memset(sum, 0, sizeof sum);
            if (in_half)
                for (size_t x = 0; x < k; x++) {
                    const float *row = a + x * m + j;
                    for (size_t y = 0; y < r; y++) {
                        float f = b[(i + y) * k + x];
                        for (size_t z = 0; z < w; z++) sum[y][z] += f * row[z];
                    }
                    if (x % 16 == 15 || x + 1 == k)
                        for (size_t y = 0; y < r; y++)
                            for (size_t z = 0; z < w; z++) sum[y][z] = h2f(f2h(sum[y][z]));
                }
            else if (w == W && r == R)
                for (size_t x = 0; x < k; x++) {
                    const float *row = a + x * m + j;
                    for (size_t y = 0; y < R; y++) {
                        float f = b[(i + y) * k + x];
                        for (size_t z = 0; z < W; z++) sum[y][z] += f * row[z];
                    }
                }
            else
                for (size_t x = 0; x < k; x++) {
                    const float *row = a + x * m + j;
                    for (size_t y = 0; y < r; y++) {
                        float f = b[(i + y) * k + x];
                        for (size_t z = 0; z < w; z++) sum[y][z] += f * row[z];
                    }
                }
            for (size_t y = 0; y < r; y++)
                for (size_t z = 0; z < w; z++) c[(i + y) * m + j + z] = sum[y][z];
        }
    }
}

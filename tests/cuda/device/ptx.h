// What the C that translate.py makes of PTX is written in.
#include <stdint.h>
#include <string.h>
#include <math.h>
#include <fenv.h>
#include <immintrin.h>
typedef struct {
    uint32_t x, y, z;
} dim3_;
static inline float as_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t as_u32(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline double as_f64(uint64_t u) {
    double f;
    memcpy(&f, &u, 8);
    return f;
}
static inline uint64_t as_u64(double f) {
    uint64_t u;
    memcpy(&u, &f, 8);
    return u;
}
static inline float h2f(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
static inline uint16_t f2h(float f) { return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(f), 0)); }
// In f32 rounded to odd: what is rounded again, to a format of 22 bits or fewer, is then rounded once.
static inline float odd32(double d) {
    float f = (float)d;
    if ((double)f == d || isnan(d) || as_u32(f) & 1) return f;
    return as_f32(as_u32(f) + (fabs((double)f) < fabs(d) ? 1 : -1));
}
static inline uint16_t d2h(double d) { return f2h(odd32(d)); }
// x*y + z in f64 rounded to odd, of f32 and halves, whose product f64 has exactly.
static inline double fma_odd(float x, float y, float z) {
    double product = (double)x * y, sum = product + z;
    double part = sum - product, missing = (product - (sum - part)) + ((double)z - part);
    if (missing == 0 || !isfinite(sum) || as_u64(sum) & 1) return sum;
    return as_f64(as_u64(sum) + ((missing > 0) == (sum > 0) ? 1 : -1));
}
static inline float b2f(uint16_t b) { return as_f32((uint32_t)b << 16); }
static inline uint16_t f2b(float f) {
    uint32_t u = as_u32(f);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline uint16_t f2b_rz(float f) { return (uint16_t)(as_u32(f) >> 16); }
static inline float e4m3_f(uint8_t v) {
    int s = v >> 7, e = (v >> 3) & 15, m = v & 7;
    float r;
    if (e == 15 && m == 7)
        r = NAN;
    else if (e == 0)
        r = ldexpf((float)m, -9);
    else
        r = ldexpf(1.0f + m / 8.0f, e - 7);
    return s ? -r : r;
}
static inline uint8_t f_e4m3(float f) { // satfinite, to nearest even
    if (isnan(f)) return 0x7f;
    uint8_t s = signbit(f) ? 0x80 : 0;
    float a = fabsf(f);
    if (a >= 448.0f) return s | 0x7e;
    if (a < ldexpf(1, -6)) {
        int m = (int)rintf(ldexpf(a, 9));
        return s | (uint8_t)m;
    }
    int e;
    float fr = frexpf(a, &e);
    e -= 1;
    int m = (int)rintf((fr * 2 - 1) * 8);
    if (m == 8) {
        m = 0;
        e += 1;
    }
    if (e > 8 || (e == 8 && m > 6)) return s | 0x7e;
    return s | (uint8_t)((e + 7) << 3 | m);
}
static inline float rz32(double d) {
    float f = (float)d;
    if (fabs((double)f) > fabs(d)) f = nextafterf(f, 0.0f);
    return f;
}
static inline float rm32(double d) {
    float f = (float)d;
    if ((double)f > d) f = nextafterf(f, -INFINITY);
    return f;
}
static inline float rp32(double d) {
    float f = (float)d;
    if ((double)f < d) f = nextafterf(f, INFINITY);
    return f;
}
// Rounded to zero, down or up, by the processor's own mode; volatile, or the compiler would move them out of it.
#define ROUNDED(name, T, fused)                                                                                                    \
    static inline T name(int mode, char operation, T a, T b, T c) {                                                                \
        volatile T x = a, y = b, z = c, r;                                                                                         \
        fesetround(mode);                                                                                                          \
        r = operation == '+' ? x + y : operation == '-' ? x - y : operation == '*' ? x * y : operation == '/' ? x / y : fused(x, y, z); \
        fesetround(FE_TONEAREST);                                                                                                  \
        return r;                                                                                                                  \
    }
ROUNDED(slowly_rounded32, float, fmaf)
ROUNDED(rounded64, double, fma)
// In f64 first, exactly or rounded to odd, which f32 then rounds as from the exact value; the processor's own mode takes a hundred times as long to change. A
// zero's sign is the mode's, and quotients are no sums.
static inline float rounded32(int mode, char operation, float a, float b, float c) {
    double exact = operation == '+' ? fma_odd(a, 1, b) : operation == '-' ? fma_odd(a, 1, -b) : operation == '*' ? (double)a * b : fma_odd(a, b, c);
    if (operation == '/' || exact == 0) return slowly_rounded32(mode, operation, a, b, c);
    return mode == FE_DOWNWARD ? rm32(exact) : mode == FE_UPWARD ? rp32(exact) : rz32(exact);
}
#define WHOLE_TO_F32(name, T)                                                                                                      \
    static inline float name(int mode, T value) {                                                                                  \
        volatile T whole = value;                                                                                                  \
        fesetround(mode);                                                                                                          \
        volatile float r = (float)whole;                                                                                           \
        fesetround(FE_TONEAREST);                                                                                                  \
        return r;                                                                                                                  \
    }
WHOLE_TO_F32(s64_to_f32, int64_t)
WHOLE_TO_F32(u64_to_f32, uint64_t)
static inline float sat32(float f) { return isnan(f) ? 0.0f : f < 0 ? 0 : f > 1 ? 1 : f; }
static inline double sat64(double f) { return isnan(f) ? 0.0 : f < 0 ? 0 : f > 1 ? 1 : f; }
#define CVT_INT(name, T, lo, hi)                                                                                                   \
    static inline T name(double d) {                                                                                               \
        if (isnan(d)) return 0;                                                                                                    \
        if (d <= (double)(lo)) return (T)(lo);                                                                                     \
        if (d >= (double)(hi)) return (T)(hi);                                                                                     \
        return (T)d;                                                                                                               \
    }
CVT_INT(d2s8, int8_t, INT8_MIN, INT8_MAX)
CVT_INT(d2u8, uint8_t, 0, UINT8_MAX) CVT_INT(d2s16, int16_t, INT16_MIN, INT16_MAX) CVT_INT(d2u16, uint16_t, 0, UINT16_MAX)
    CVT_INT(d2s32, int32_t, INT32_MIN, INT32_MAX) CVT_INT(d2u32, uint32_t, 0, UINT32_MAX)
        CVT_INT(d2s64, int64_t, INT64_MIN, INT64_MAX) CVT_INT(d2u64, uint64_t, 0, UINT64_MAX) static inline uint32_t
    prmt_(uint32_t a, uint32_t b, uint32_t c) {
    uint64_t v = ((uint64_t)b << 32) | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = (c >> (4 * i)) & 15;
        uint8_t by = (uint8_t)(v >> (8 * (s & 7)));
        if (s & 8) by = (by & 0x80) ? 0xff : 0;
        r |= (uint32_t)by << (8 * i);
    }
    return r;
}
static inline uint32_t brev32(uint32_t x) {
    uint32_t r = 0;
    for (int i = 0; i < 32; i++) r |= ((x >> i) & 1) << (31 - i);
    return r;
}
static inline uint64_t bfi64(uint64_t a, uint64_t b, uint32_t p, uint32_t l, int w) {
    p &= 255;
    l &= 255;
    if (l == 0 || p >= (uint32_t)w) return b;
    uint64_t m = l >= 64 ? ~0ull : ((1ull << l) - 1);
    m <<= p;
    return (b & ~m) | ((a << p) & m);
}
static inline uint64_t bfe_(uint64_t a, uint32_t p, uint32_t l, int w, int s) {
    p &= 255;
    l &= 255;
    uint32_t top = p + l - 1 < (uint32_t)w ? p + l - 1 : (uint32_t)w - 1;
    uint64_t sign = s && l ? a >> top & 1 : 0, r = 0;
    for (uint32_t i = 0; i < (uint32_t)w; i++) r |= (i < l && p + i < (uint32_t)w ? a >> (p + i) & 1 : sign) << i;
    return r;
}
static inline uint32_t lop3_(uint32_t a, uint32_t b, uint32_t c, int t) {
    uint32_t r = 0;
    for (int i = 0; i < 8; i++)
        if (t >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}
#define SHL(w, a, n) ((n) >= (w) ? 0 : ((a) << (n)))
#define SHR(w, a, n) ((n) >= (w) ? 0 : ((a) >> (n)))
#define SAR(w, a, n) ((a) >> ((n) >= (w) ? (w) - 1 : (n)))
#define DIVG(a, b, bad) ((b) == 0 ? (bad) : (a) / (b))
#define REMG(a, b) ((b) == 0 ? (a) : (a) % (b))
static inline float fmax_nan(float a, float b) { return isnan(a) || isnan(b) ? NAN : fmaxf(a, b); }
static inline float fmin_nan(float a, float b) { return isnan(a) || isnan(b) ? NAN : fminf(a, b); }
// A thread of a block whose threads meet.
enum { DONE = 0, AT_BAR = 1, AT_SHFL = 2, AT_VOTE = 3, AT_WARP = 4, AT_MMA = 5, AT_LDM = 6 };
typedef struct {
    uint32_t tid[3];
    int pc, status;
    uint32_t mode, val, b, c, mask, out;
    uint8_t pred;
    uint8_t *local;
    uint32_t in[12], outs[8];
    void *copies;
} Thread_;
typedef struct {
    const uint8_t *param;
    uint8_t *shared;
    uint32_t ntid[3], ctaid[3], nctaid[3];
    uint32_t shared_bytes;
} Block_;
// A thread's copies from global to shared memory: where they are late (`copies` is not null), a group of them is there when the thread waits for it.
extern void sim_copy_late(void *copies, uint8_t *to, const uint8_t *from, uint32_t bytes, uint32_t of);
extern void sim_end_group(void *copies);
extern void sim_await_groups(void *copies, uint32_t left);
static inline void copy_(void *copies, uint8_t *to, const uint8_t *from, uint32_t bytes, uint32_t of) {
    if (copies) {
        sim_copy_late(copies, to, from, bytes, of);
        return;
    }
    memcpy(to, from, bytes);
    memset(to + bytes, 0, of - bytes);
}
// In strict mode every access is checked; where it is none of the device's, the device has a fault and the thread ends.
#ifdef CHECKED
extern void sim_check(const void *p, int bytes, int value_bytes, const char *kernel);
extern void sim_check_shared(const void *p, int bytes, const void *shared, uint32_t shared_bytes, const char *kernel);
extern int sim_faulted(void);
#define check_(p, n, w) (sim_check(p, n, w, KERNEL), sim_faulted())
#define check_shared_(p, n, w) (sim_check_shared(p, n, B->shared, B->shared_bytes, KERNEL), sim_faulted())
#else
#define check_(p, n, w) 0
#define check_shared_(p, n, w) 0
#endif

// cuBLASLt: descriptions, a heuristic of one answer, and products with what follows them.
#include <cublasLt.h>
#include <cstdio>
#include <cstdlib>
#include <string>
#include "numbers.h"
#include "simulated.h"
struct Layout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch = 1;
    int64_t stride = 0;
};
struct Desc {
    cublasComputeType_t compute;
    cudaDataType scale;
    int32_t ta = 0, tb = 0;
    const float *sa = nullptr, *sb = nullptr, *sd = nullptr;
    const void *bias = nullptr;
    uint32_t epilogue = 1;
    int8_t fast = 0;
    int32_t sa_mode = 0, sb_mode = 0;
};
// What the caller says that all addresses of A, B, C and D are multiples of; 256 unless it says otherwise (cublasLt.h, "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT").
struct Preference {
    uint32_t alignments[4] = {256, 256, 256, 256};
};
static bool format(cudaDataType t, Format &f) {
    switch (t) {
    case CUDA_R_32F: f = F32; return true;
    case CUDA_R_16F: f = F16; return true;
    case CUDA_R_16BF: f = BF16; return true;
    case CUDA_R_8F_E4M3: f = E4M3; return true;
    default: return false;
    }
}
extern "C" {
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) {
    sim_count(__func__);
    *h = (cublasLtHandle_t) new int;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) {
    delete (int *)h;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType t, uint64_t r, uint64_t c, int64_t ld) {
    sim_count(__func__);
    *l = (cublasLtMatrixLayout_t) new Layout{t, r, c, ld};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    delete (Layout *)l;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l_, cublasLtMatrixLayoutAttribute_t a, const void *v,
                                                size_t n) {
    auto *l = (Layout *)l_;
    if (a == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT)
        memcpy(&l->batch, v, n);
    else if (a == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET)
        memcpy(&l->stride, v, n);
    else
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t c, cudaDataType s) {
    sim_count(__func__);
    *d = (cublasLtMatmulDesc_t) new Desc{c, s};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    delete (Desc *)d;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d_, cublasLtMatmulDescAttributes_t a, const void *v, size_t n) {
    auto *d = (Desc *)d_;
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA: memcpy(&d->ta, v, n); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: memcpy(&d->tb, v, n); break;
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER: memcpy(&d->sa, v, n); break;
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER: memcpy(&d->sb, v, n); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: memcpy(&d->bias, v, n); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: memcpy(&d->epilogue, v, n); break;
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM: memcpy(&d->fast, v, n); break;
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE: memcpy(&d->sa_mode, v, n); break;
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE: memcpy(&d->sb_mode, v, n); break;
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = (cublasLtMatmulPreference_t) new Preference;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    delete (Preference *)p;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t a, const void *v,
                                                    size_t n) {
    if (a >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES && a <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES)
        memcpy(&((Preference *)p)->alignments[a - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], v, n);
    return CUBLAS_STATUS_SUCCESS;
}
static int capability() {
    const char *capability = getenv("SIMCUDA_CAP");
    return atoi(capability && *capability ? capability : "90");
}
// 8-bit products begin with compute capability 8.9 (cuBLAS' documentation, "8-bit Floating Point Data Types (FP8) Usage").
static bool has_fp8() { return capability() >= 89; }
// A scale for each row and column: of 8-bit values on Hopper (cuBLAS' documentation, "Outer Vector Scaling for FP8 Data Types").
static bool has_known_scales(const Desc *d, const Layout *a) {
    if (d->sa_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F && d->sb_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) return true;
    return d->sa_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F && d->sb_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F && d->sa && d->sb &&
           a->type == CUDA_R_8F_E4M3 && capability() == 90;
}
// SIMCUDA_EPILOGUES=0: a library that has no product with anything behind it; =late: one that says so when it is to multiply.
static bool has_epilogues() {
    const char *has = getenv("SIMCUDA_EPILOGUES");
    return !has || strcmp(has, "0");
}
static bool refuses_late(const Desc *d) {
    const char *has = getenv("SIMCUDA_EPILOGUES");
    return has && !strcmp(has, "late") && (d->epilogue != CUBLASLT_EPILOGUE_DEFAULT || d->sa_mode);
}
static bool allowed(const Desc *d, const Layout *a, const Layout *b, const Layout *c, const Layout *o) {
    if (d->compute != CUBLAS_COMPUTE_32F || d->scale != CUDA_R_32F || a->type != b->type) return false;
    // Products only: no batches.
    if (a->batch != 1 || b->batch != 1 || c->batch != 1 || o->batch != 1) return false;
    if (c->type != o->type || c->rows != o->rows || c->cols != o->cols) return false;
    // The sides of op(A) (m, k), op(B) (k, n) and D (m, n).
    uint64_t m = d->ta ? a->cols : a->rows, k = d->ta ? a->rows : a->cols, depth = d->tb ? b->cols : b->rows, n = d->tb ? b->rows : b->cols;
    if (m != o->rows || n != o->cols || k != depth) return false;
    if ((uint64_t)a->ld < a->rows || (uint64_t)b->ld < b->rows || (uint64_t)c->ld < c->rows || (uint64_t)o->ld < o->rows) return false;
    switch (d->epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT: break;
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
        if (!has_epilogues()) return false;
        break;
    default: return false;
    }
    if (!has_known_scales(d, a)) return false;
    if (a->type != CUDA_R_8F_E4M3) return o->type == a->type;
    // What cuBLAS' documentation asks of 8-bit numbers on Hopper.
    return has_fp8() && d->ta == CUBLAS_OP_T && d->tb == CUBLAS_OP_N && a->ld % 16 == 0 && b->ld % 16 == 0 && a->rows % 16 == 0 &&
           a->cols % 16 == 0 && (o->type == CUDA_R_16BF || o->type == CUDA_R_16F || o->type == CUDA_R_32F);
}
// The approximation of gelu with tanh (Hendrycks and Gimpel 2016), which is the one that cuBLASLt has.
static float gelu(float x) { return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))); }
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t o,
                                              cublasLtMatmulPreference_t p, int n, cublasLtMatmulHeuristicResult_t *r, int *found) {
    sim_count(__func__);
    *found = 0;
    if (!allowed((Desc *)d, (Layout *)a, (Layout *)b, (Layout *)c, (Layout *)o)) return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(r, 0, sizeof *r);
    r->state = CUBLAS_STATUS_SUCCESS;
    for (int i = 0; i < 4; i++) r->algo.data[i] = ((Preference *)p)->alignments[i];
    *found = n > 0;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d_, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a_, const void *B, cublasLtMatrixLayout_t b_, const void *beta, const void *C,
                              cublasLtMatrixLayout_t c_, void *D, cublasLtMatrixLayout_t o_, const cublasLtMatmulAlgo_t *algorithm,
                              void *, size_t, cudaStream_t s) {
    sim_count(__func__);
    Desc d = *(Desc *)d_;
    Layout a = *(Layout *)a_, b = *(Layout *)b_, c = *(Layout *)c_, o = *(Layout *)o_;
    Format fa, fb, fo;
    if (!allowed(&d, &a, &b, &c, &o)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (refuses_late(&d)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!format(a.type, fa) || !format(b.type, fb) || !format(o.type, fo)) return CUBLAS_STATUS_NOT_SUPPORTED;
    bool has_bias = d.epilogue == CUBLASLT_EPILOGUE_BIAS || d.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
    if (has_bias && !d.bias) return CUBLAS_STATUS_INVALID_VALUE;
    // C may be D, or another matrix of the same order.
    if (C == D && c.ld != o.ld) return CUBLAS_STATUS_INVALID_VALUE;
    const void *addresses[] = {A, B, C, D};
    for (int i = 0; algorithm && i < 4; i++)
        if ((uint64_t)addresses[i] % algorithm->data[i]) return CUBLAS_STATUS_NOT_SUPPORTED;
    bool by_row_and_column = d.sa_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    if (by_row_and_column && ((uint64_t)d.sa % 16 || (uint64_t)d.sb % 16)) return CUBLAS_STATUS_NOT_SUPPORTED;
    size_t m = o.rows, n = o.cols, k = d.ta ? a.rows : a.cols;
    float al = *(const float *)alpha, be = *(const float *)beta;
    std::string t = fa == E4M3 ? "e4m3" : fa == F16 ? "f16" : fa == BF16 ? "bf16" : "f32";
    if (has_bias) t += "+bias";
    if (d.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS) t += "+gelu";
    if (be != 0) t += "+residual";
    t += " m" + std::to_string(m) + " n" + std::to_string(n) + " k" + std::to_string(k) + " batch1";
    sim_check_range(A, a.ld * (a.cols - 1) * size_of(fa) + a.rows * size_of(fa), "cublasLtMatmul");
    sim_check_range(B, b.ld * (b.cols - 1) * size_of(fb) + b.rows * size_of(fb), "cublasLtMatmul");
    sim_check_range(D, o.ld * (n - 1) * size_of(fo) + m * size_of(fo), "cublasLtMatmul");
    if (be != 0) sim_check_range(C, c.ld * (n - 1) * size_of(fo) + m * size_of(fo), "cublasLtMatmul");
    if (has_bias) sim_check_range(d.bias, m * size_of(fo), "cublasLtMatmul");
    if (by_row_and_column) {
        sim_check_range(d.sa, m * 4, "cublasLtMatmul");
        sim_check_range(d.sb, n * 4, "cublasLtMatmul");
        t.insert(t.find(' '), "+scales");
    }
    std::function<void()> work = [=] {
        std::vector<float> x(m * k), y(n * k), z(n * m);
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < m; j++) x[i * m + j] = get(A, fa, d.ta ? j * a.ld + i : i * a.ld + j);
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < k; i++) y[j * k + i] = get(B, fb, d.tb ? i * b.ld + j : j * b.ld + i);
        product(m, n, k, x.data(), y.data(), z.data());
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < m; i++) {
                float f = al * (d.sa ? d.sa[by_row_and_column ? i : 0] : 1) * (d.sb ? d.sb[by_row_and_column ? j : 0] : 1);
                float v = f * z[j * m + i];
                if (be != 0) v += be * get(C, fo, j * c.ld + i);
                if (has_bias) v += get(d.bias, fo, i);
                if (d.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS) v = gelu(v);
                put(D, fo, j * o.ld + i, v);
            }
    };
    double values = (double)m * n * (be != 0 ? 2 : 1) + (has_bias ? m : 0) + (by_row_and_column ? 4.0 / size_of(fo) * (m + n) : 0);
    sim_submit(s, "gemm", t.c_str(), 2.0 * m * n * k,
               (double)m * k * size_of(fa) + (double)n * k * size_of(fb) + values * size_of(fo), &work);
    return CUBLAS_STATUS_SUCCESS;
}
}

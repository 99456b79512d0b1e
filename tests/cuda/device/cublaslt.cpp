// cuBLASLt: descriptions, a heuristic of one answer, and products.
#include <cublasLt.h>
#include <cstdio>
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
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = (cublasLtMatmulPreference_t) new int;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    delete (int *)p;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void *,
                                                    size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
// 8-bit products begin with compute capability 8.9 (cuBLAS' documentation, "8-bit Floating Point Data Types (FP8) Usage").
static bool has_fp8() {
    const char *capability = getenv("SIMCUDA_CAP");
    return atoi(capability && *capability ? capability : "90") >= 89;
}
static bool allowed(const Desc *d, const Layout *a, const Layout *b, const Layout *c) {
    if (d->epilogue != CUBLASLT_EPILOGUE_DEFAULT) return false; // None is computed here.
    if (a->type != CUDA_R_8F_E4M3) return true; // What cuBLAS' documentation asks of 8-bit numbers on Hopper.
    return has_fp8() && b->type == CUDA_R_8F_E4M3 && d->ta == CUBLAS_OP_T && d->tb == CUBLAS_OP_N && d->compute == CUBLAS_COMPUTE_32F &&
           d->scale == CUDA_R_32F && a->ld % 16 == 0 && b->ld % 16 == 0 && a->rows % 16 == 0 && a->cols % 16 == 0 &&
           (c->type == CUDA_R_16BF || c->type == CUDA_R_16F || c->type == CUDA_R_32F);
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int n, cublasLtMatmulHeuristicResult_t *r, int *found) {
    sim_count(__func__);
    *found = 0;
    if (!allowed((Desc *)d, (Layout *)a, (Layout *)b, (Layout *)c)) return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(r, 0, sizeof *r);
    r->state = CUBLAS_STATUS_SUCCESS;
    *found = n > 0;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d_, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a_, const void *B, cublasLtMatrixLayout_t b_, const void *beta, const void *,
                              cublasLtMatrixLayout_t, void *D, cublasLtMatrixLayout_t o_, const cublasLtMatmulAlgo_t *, void *,
                              size_t, cudaStream_t s) {
    sim_count(__func__);
    Desc d = *(Desc *)d_;
    Layout a = *(Layout *)a_, b = *(Layout *)b_, o = *(Layout *)o_;
    Format fa, fb, fo;
    if (!allowed(&d, &a, &b, &o) || (a.type == CUDA_R_8F_E4M3 && ((uint64_t)A % 16 || (uint64_t)B % 16 || (uint64_t)D % 16)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!format(a.type, fa) || !format(b.type, fb) || !format(o.type, fo)) return CUBLAS_STATUS_NOT_SUPPORTED;
    size_t m = o.rows, n = o.cols, k = d.ta ? a.rows : a.cols;
    float al = *(const float *)alpha;
    if (*(const float *)beta != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    char t[128];
    snprintf(t, sizeof t, "lt %s m%zu n%zu k%zu", fa == E4M3 ? "e4m3" : "whole", m, n, k);
    sim_check_range(A, a.ld * a.cols * size_of(fa), "cublasLtMatmul");
    sim_check_range(B, b.ld * b.cols * size_of(fb), "cublasLtMatmul");
    sim_check_range(D, o.ld * o.cols * size_of(fo), "cublasLtMatmul");
    std::function<void()> work = [=] {
        std::vector<float> x(m * k), y(n * k), z(n * m);
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < m; j++) x[i * m + j] = get(A, fa, d.ta ? j * a.ld + i : i * a.ld + j);
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < k; i++) y[j * k + i] = get(B, fb, d.tb ? i * b.ld + j : j * b.ld + i);
        product(m, n, k, x.data(), y.data(), z.data());
        float f = al * (d.sa ? *d.sa : 1) * (d.sb ? *d.sb : 1);
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < m; i++) put(D, fo, j * o.ld + i, f * z[j * m + i]);
    };
    sim_submit(s, "gemm", t, 2.0 * m * n * k,
               (double)m * k * size_of(fa) + (double)n * k * size_of(fb) + (double)m * n * size_of(fo), &work);
    return CUBLAS_STATUS_SUCCESS;
}
}

// cuBLAS, as far as candle calls it, by plain loops.
#include <cublas_v2.h>
#include <cstdio>
#include <string>
#include "numbers.h"
#include "simulated.h"
struct cublasContext {
    cudaStream_t stream;
};
static bool format(cudaDataType t, Format &f) {
    switch (t) {
    case CUDA_R_32F: f = F32; return true;
    case CUDA_R_16F: f = F16; return true;
    case CUDA_R_16BF: f = BF16; return true;
    case CUDA_R_64F: f = F64; return true;
    default: return false;
    }
}
static cublasStatus_t gemm(cublasHandle_t h, const char *who, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                           float alpha, const void *A, Format fa, int lda, long long sa, const void *B, Format fb, int ldb,
                           long long sb, float beta, void *C, Format fc, int ldc, long long sc, int batch) {
    if (m < 0 || n < 0 || k < 0 || lda < (ta == CUBLAS_OP_N ? m : k) || ldb < (tb == CUBLAS_OP_N ? k : n) || ldc < m) {
        fprintf(stderr, "simulated device: %s m %d n %d k %d lda %d ldb %d ldc %d\n", who, m, n, k, lda, ldb, ldc);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    char d[160];
    snprintf(d, sizeof d, "%s%s%s m%d n%d k%d batch%d",
             fa == F32    ? "f32"
             : fa == F16  ? "f16"
             : fa == BF16 ? "bf16"
                          : "f64",
             ta ? " T" : " N", tb ? "T" : "N", m, n, k, batch);
    double z = size_of(fa),
           bytes = batch * ((sa || batch == 1 ? 1.0 : 1.0 / batch) * m * k * z + (double)n * k * z + (double)m * n * z);
    if (m && n && batch && !sim_dry()) {
        sim_check_range(A, ((batch - 1) * sa + (long long)((ta ? m : k) - 1) * lda + (ta ? k : m)) * size_of(fa), who);
        sim_check_range(B, ((batch - 1) * sb + (long long)((tb ? k : n) - 1) * ldb + (tb ? n : k)) * size_of(fb), who);
        sim_check_range(C, ((batch - 1) * sc + (long long)(n - 1) * ldc + m) * size_of(fc), who);
    }
    std::function<void()> work = [=] {
        std::vector<float> a((size_t)m * k), b((size_t)n * k), c((size_t)n * m);
        for (int i = 0; i < batch; i++) {
            const char *Ai = (const char *)A + i * sa * size_of(fa), *Bi = (const char *)B + i * sb * size_of(fb);
            char *Ci = (char *)C + i * sc * size_of(fc);
            if (i == 0 || sa)
                for (int x = 0; x < k; x++)
                    for (int y = 0; y < m; y++)
                        a[(size_t)x * m + y] = get(Ai, fa, ta == CUBLAS_OP_N ? (size_t)x * lda + y : (size_t)y * lda + x);
            if (i == 0 || sb)
                for (int y = 0; y < n; y++)
                    for (int x = 0; x < k; x++)
                        b[(size_t)y * k + x] = get(Bi, fb, tb == CUBLAS_OP_N ? (size_t)y * ldb + x : (size_t)x * ldb + y);
            product(m, n, k, a.data(), b.data(), c.data());
            for (int y = 0; y < n; y++)
                for (int x = 0; x < m; x++) {
                    size_t at = (size_t)y * ldc + x;
                    float v = alpha * c[(size_t)y * m + x];
                    if (beta != 0) v += beta * get(Ci, fc, at);
                    put(Ci, fc, at, v);
                }
        }
    };
    sim_submit(h->stream, "gemm", d, 2.0 * m * n * k * batch, bytes, &work);
    return CUBLAS_STATUS_SUCCESS;
}
extern "C" {
cublasStatus_t cublasCreate_v2(cublasHandle_t *h) {
    sim_count(__func__);
    *h = new cublasContext{nullptr};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t h) {
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s) {
    sim_count(__func__);
    h->stream = s;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *, size_t) {
    sim_count(__func__);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t, cublasPointerMode_t) { return CUBLAS_STATUS_SUCCESS; }
const char *cublasGetStatusName(cublasStatus_t) { return "a cuBLAS status"; }
const char *cublasGetStatusString(cublasStatus_t) { return "a cuBLAS status"; }
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                                          const void *alpha, const void *A, cudaDataType at, int lda, long long sa, const void *B,
                                          cudaDataType bt, int ldb, long long sb, const void *beta, void *C, cudaDataType ct,
                                          int ldc, long long sc, int batch, cublasComputeType_t compute, cublasGemmAlgo_t) {
    sim_count(__func__);
    Format fa, fb, fc;
    if (!format(at, fa) || !format(bt, fb) || !format(ct, fc)) return CUBLAS_STATUS_NOT_SUPPORTED;
    bool half = compute == CUBLAS_COMPUTE_16F;
    float al = half ? h2f(*(const uint16_t *)alpha) : *(const float *)alpha,
          be = half ? h2f(*(const uint16_t *)beta) : *(const float *)beta;
    return gemm(h, __func__, ta, tb, m, n, k, al, A, fa, lda, sa, B, fb, ldb, sb, be, C, fc, ldc, sc, batch);
}
cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void *alpha,
                            const void *A, cudaDataType at, int lda, const void *B, cudaDataType bt, int ldb, const void *beta,
                            void *C, cudaDataType ct, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t a) {
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, A, at, lda, 0, B, bt, ldb, 0, beta, C, ct, ldc, 0, 1, compute, a);
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                                         const float *al, const float *A, int lda, long long sa, const float *B, int ldb,
                                         long long sb, const float *be, float *C, int ldc, long long sc, int batch) {
    sim_count(__func__);
    return gemm(h, __func__, ta, tb, m, n, k, *al, A, F32, lda, sa, B, F32, ldb, sb, *be, C, F32, ldc, sc, batch);
}
cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                                         const double *al, const double *A, int lda, long long sa, const double *B, int ldb,
                                         long long sb, const double *be, double *C, int ldc, long long sc, int batch) {
    sim_count(__func__);
    return gemm(h, __func__, ta, tb, m, n, k, (float)*al, A, F64, lda, sa, B, F64, ldb, sb, (float)*be, C, F64, ldc, sc, batch);
}
}

// cuDNN's convolutions, as far as candle calls them.
#include <cudnn.h>
#include <cstdio>
#include "numbers.h"
#include "simulated.h"
struct cudnnContext {
    cudaStream_t stream;
};
struct cudnnTensorStruct {
    cudnnDataType_t type;
    int dims[4], strides[4];
};
struct cudnnFilterStruct {
    cudnnDataType_t type;
    cudnnTensorFormat_t format;
    int dims[4];
};
struct cudnnActivationStruct {
    cudnnActivationMode_t mode;
    cudnnNanPropagation_t nan;
};
struct cudnnConvolutionStruct {
    int pad[2], stride[2], dilation[2], groups;
    cudnnDataType_t compute;
    cudnnMathType_t math;
};
static bool format(cudnnDataType_t t, Format &f) {
    switch (t) {
    case CUDNN_DATA_FLOAT: f = F32; return true;
    case CUDNN_DATA_HALF: f = F16; return true;
    case CUDNN_DATA_BFLOAT16: f = BF16; return true;
    default: return false;
    }
}
// The forward convolutions that cuDNN's documentation lists (legacy API, "cudnnConvolutionForward", supported configurations): tensors and filter of
// one type, sums in f32, in f16 only of f16; channels first, or all of it channels last, and then f16 or bf16 in multiples of 8 channels.
static bool is_packed(const cudnnTensorStruct &t, bool channels_last) {
    int c = t.dims[1], h = t.dims[2], w = t.dims[3];
    return channels_last ? t.strides[1] == 1 && t.strides[3] == c && t.strides[2] == w * c && t.strides[0] == h * w * c
                         : t.strides[3] == 1 && t.strides[2] == w && t.strides[1] == h * w && t.strides[0] == c * h * w;
}
static bool listed(const cudnnTensorStruct &x, const cudnnFilterStruct &w, const cudnnConvolutionStruct &c, const cudnnTensorStruct &y) {
    bool sums = c.compute == CUDNN_DATA_FLOAT || (c.compute == CUDNN_DATA_HALF && x.type == CUDNN_DATA_HALF);
    if (x.type != w.type || x.type != y.type || !sums) return false;
    if (w.format == CUDNN_TENSOR_NCHW) return is_packed(y, false);
    // SIMCUDA_NHWC=0: as a GPU that has no such kernels.
    static const bool has_last = !getenv("SIMCUDA_NHWC") || strcmp(getenv("SIMCUDA_NHWC"), "0");
    if (!has_last) return false;
    return w.format == CUDNN_TENSOR_NHWC && is_packed(x, true) && is_packed(y, true) && x.type != CUDNN_DATA_FLOAT && w.dims[0] % 8 == 0 &&
           w.dims[1] % 8 == 0;
}
// What is added to a convolution: a number for each channel, and alpha2 times a tensor of the output's order.
struct Added {
    const void *bias = nullptr, *z = nullptr;
    float alpha = 0;
};
static cudnnStatus_t convolve(cudnnHandle_t h, const cudnnTensorStruct &X, const void *x, const cudnnFilterStruct &Wf, const void *w,
                              const cudnnConvolutionStruct &C, const cudnnTensorStruct &Y, void *y, Added added) {
    Format fx, fw, fy;
    if (!format(X.type, fx) || !format(Wf.type, fw) || !format(Y.type, fy)) return CUDNN_STATUS_NOT_SUPPORTED;
    if (!listed(X, Wf, C, Y)) return CUDNN_STATUS_NOT_SUPPORTED;
    if (C.groups != 1) return CUDNN_STATUS_NOT_SUPPORTED;
    int n = X.dims[0], c = X.dims[1], H = X.dims[2], W = X.dims[3], k = Wf.dims[0], kh = Wf.dims[2], kw = Wf.dims[3],
        oh = Y.dims[2], ow = Y.dims[3];
    if (Wf.dims[1] != c || Y.dims[0] != n || Y.dims[1] != k ||
        oh != (H + 2 * C.pad[0] - C.dilation[0] * (kh - 1) - 1) / C.stride[0] + 1 ||
        ow != (W + 2 * C.pad[1] - C.dilation[1] * (kw - 1) - 1) / C.stride[1] + 1)
        return CUDNN_STATUS_BAD_PARAM;
    char t[160];
    snprintf(t, sizeof t, "%s%s%s%s %dx%d s%d n%d c%d k%d %dx%d%s",
             fx == F32   ? "f32"
             : fx == F16 ? "f16"
                         : "bf16",
             added.bias ? "+bias" : "", added.alpha != 0 ? "+residual" : "", C.compute == CUDNN_DATA_HALF ? " summed in f16" : "", kh, kw, C.stride[0], n, c, k, oh, ow,
             X.strides[3] == 1 ? "" : " strided");
    double z = size_of(fx), flops = 2.0 * n * k * c * kh * kw * oh * ow,
           bytes = z * ((double)n * c * H * W + (double)k * c * kh * kw + (added.alpha != 0 ? 2.0 : 1.0) * n * k * oh * ow +
                        (added.bias ? k : 0));
    sim_check_range(x,
                    size_of(fx) * (1 + (n - 1) * (uint64_t)X.strides[0] + (c - 1) * (uint64_t)X.strides[1] +
                                   (H - 1) * (uint64_t)X.strides[2] + (W - 1) * (uint64_t)X.strides[3]),
                    "a convolution's input");
    sim_check_range(y, z * n * k * oh * ow, "a convolution's output");
    if (added.bias) sim_check_range(added.bias, z * k, "a convolution's bias");
    if (added.alpha != 0) sim_check_range(added.z, z * n * k * oh * ow, "a convolution's residual");
    sim_check_range(w, z * k * c * kh * kw, "a convolution's filter");
    std::function<void()> work = [=] {
        size_t depth = (size_t)c * kh * kw, places = (size_t)oh * ow;
        std::vector<float> col(depth * places), wt(k * depth), out(k * places);
        for (size_t i = 0; i < k * depth; i++) {
            size_t o = i / depth, ci = i % depth / (kh * kw), at = i % (kh * kw);
            wt[i] = get(w, fw, Wf.format == CUDNN_TENSOR_NHWC ? (o * kh * kw + at) * c + ci : i);
        }
        for (int b = 0; b < n; b++) {
            for (int ci = 0; ci < c; ci++)
                for (int i = 0; i < kh; i++)
                    for (int j = 0; j < kw; j++) {
                        float *row = &col[(((size_t)ci * kh + i) * kw + j) * places];
                        for (int p = 0; p < oh; p++)
                            for (int q = 0; q < ow; q++) {
                                int yy = p * C.stride[0] - C.pad[0] + i * C.dilation[0],
                                    xx = q * C.stride[1] - C.pad[1] + j * C.dilation[1];
                                row[(size_t)p * ow + q] = yy < 0 || yy >= H || xx < 0 || xx >= W
                                                              ? 0
                                                              : get(x, fx,
                                                                    (size_t)b * X.strides[0] + (size_t)ci * X.strides[1] +
                                                                        (size_t)yy * X.strides[2] + (size_t)xx * X.strides[3]);
                            }
                    }
            product(places, k, depth, col.data(), wt.data(), out.data(),
                    C.compute == CUDNN_DATA_HALF && getenv("SIMCUDA_TRUE_HALF"));
            for (int o = 0; o < k; o++)
                for (int p = 0; p < oh; p++)
                    for (int q = 0; q < ow; q++) {
                        size_t at = (size_t)b * Y.strides[0] + (size_t)o * Y.strides[1] + (size_t)p * Y.strides[2] +
                                    (size_t)q * Y.strides[3];
                        float v = out[o * places + (size_t)p * ow + q];
                        if (added.alpha != 0) v += added.alpha * get(added.z, fy, at);
                        if (added.bias) v += get(added.bias, fy, o);
                        put(y, fy, at, v);
                    }
        }
    };
    sim_submit(h->stream, "conv", t, flops, bytes, &work);
    return CUDNN_STATUS_SUCCESS;
}
#define OK return CUDNN_STATUS_SUCCESS
extern "C" {
cudnnStatus_t cudnnCreate(cudnnHandle_t *h) {
    sim_count(__func__);
    *h = new cudnnContext{nullptr};
    OK;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t h) {
    delete h;
    OK;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t s) {
    h->stream = s;
    OK;
}
size_t cudnnGetVersion() { return 91900; }
const char *cudnnGetErrorString(cudnnStatus_t) { return "a cuDNN status"; }
cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t *d) {
    sim_count(__func__);
    *d = new cudnnTensorStruct{};
    OK;
}
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t d) {
    delete d;
    OK;
}
cudnnStatus_t cudnnSetTensor4dDescriptorEx(cudnnTensorDescriptor_t d, cudnnDataType_t t, int n, int c, int h, int w, int sn, int sc,
                                           int sh, int sw) {
    *d = {t, {n, c, h, w}, {sn, sc, sh, sw}};
    OK;
}
cudnnStatus_t cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t d, cudnnTensorFormat_t f, cudnnDataType_t t, int n, int c, int h,
                                         int w) {
    if (f == CUDNN_TENSOR_NHWC)
        *d = {t, {n, c, h, w}, {c * h * w, 1, w * c, c}};
    else
        *d = {t, {n, c, h, w}, {c * h * w, h * w, w, 1}};
    OK;
}
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t *d) {
    sim_count(__func__);
    *d = new cudnnFilterStruct{};
    OK;
}
cudnnStatus_t cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t d) {
    delete d;
    OK;
}
cudnnStatus_t cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t d, cudnnDataType_t t, cudnnTensorFormat_t f, int k, int c, int h,
                                         int w) {
    *d = {t, f, {k, c, h, w}};
    OK;
}
cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t *d) {
    sim_count(__func__);
    *d = new cudnnConvolutionStruct{};
    (*d)->groups = 1;
    OK;
}
cudnnStatus_t cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t d) {
    delete d;
    OK;
}
cudnnStatus_t cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t d, int ph, int pw, int u, int v, int dh, int dw,
                                              cudnnConvolutionMode_t, cudnnDataType_t c) {
    d->pad[0] = ph;
    d->pad[1] = pw;
    d->stride[0] = u;
    d->stride[1] = v;
    d->dilation[0] = dh;
    d->dilation[1] = dw;
    d->compute = c;
    OK;
}
cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t d, cudnnMathType_t m) {
    sim_count(__func__);
    d->math = m;
    OK;
}
cudnnStatus_t cudnnSetConvolutionGroupCount(cudnnConvolutionDescriptor_t d, int g) {
    d->groups = g;
    OK;
}
cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(cudnnHandle_t, const cudnnTensorDescriptor_t, const cudnnFilterDescriptor_t,
                                                     const cudnnConvolutionDescriptor_t, const cudnnTensorDescriptor_t, const int,
                                                     int *n, cudnnConvolutionFwdAlgoPerf_t *r) {
    sim_count(__func__);
    *n = 1;
    memset(r, 0, sizeof *r);
    r->algo = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
    r->status = CUDNN_STATUS_SUCCESS;
    OK;
}
cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(cudnnHandle_t, const cudnnTensorDescriptor_t, const cudnnFilterDescriptor_t,
                                                      const cudnnConvolutionDescriptor_t, const cudnnTensorDescriptor_t,
                                                      cudnnConvolutionFwdAlgo_t, size_t *n) {
    sim_count(__func__);
    *n = atoi(getenv("SIMCUDA_CONV_WORKSPACE") ? getenv("SIMCUDA_CONV_WORKSPACE") : "4096");
    OK;
}
cudnnStatus_t cudnnConvolutionForward(cudnnHandle_t h, const void *alpha, const cudnnTensorDescriptor_t xd, const void *x,
                                      const cudnnFilterDescriptor_t wd, const void *w, const cudnnConvolutionDescriptor_t cd,
                                      cudnnConvolutionFwdAlgo_t, void *, size_t, const void *beta, const cudnnTensorDescriptor_t yd,
                                      void *y) {
    sim_count(__func__);
    if (*(const float *)alpha != 1 || *(const float *)beta != 0) return CUDNN_STATUS_NOT_SUPPORTED;
    return convolve(h, *xd, x, *wd, w, *cd, *yd, y, {});
}
cudnnStatus_t cudnnCreateActivationDescriptor(cudnnActivationDescriptor_t *d) {
    sim_count(__func__);
    *d = new cudnnActivationStruct{};
    OK;
}
cudnnStatus_t cudnnDestroyActivationDescriptor(cudnnActivationDescriptor_t d) {
    delete d;
    OK;
}
cudnnStatus_t cudnnSetActivationDescriptor(cudnnActivationDescriptor_t d, cudnnActivationMode_t m, cudnnNanPropagation_t n, double) {
    d->mode = m;
    d->nan = n;
    OK;
}
// Without an activation only behind one algorithm (legacy API, "cudnnConvolutionBiasActivationForward"). SIMCUDA_EPILOGUES=0: none at all.
cudnnStatus_t cudnnConvolutionBiasActivationForward(cudnnHandle_t h, const void *alpha, const cudnnTensorDescriptor_t xd, const void *x,
                                                    const cudnnFilterDescriptor_t wd, const void *w,
                                                    const cudnnConvolutionDescriptor_t cd, cudnnConvolutionFwdAlgo_t algorithm, void *,
                                                    size_t, const void *alpha2, const cudnnTensorDescriptor_t zd, const void *z,
                                                    const cudnnTensorDescriptor_t bd, const void *bias,
                                                    const cudnnActivationDescriptor_t activation, const cudnnTensorDescriptor_t yd,
                                                    void *y) {
    sim_count(__func__);
    const char *has = getenv("SIMCUDA_EPILOGUES");
    if (has && (!strcmp(has, "0") || !strcmp(has, "late"))) return CUDNN_STATUS_NOT_SUPPORTED_SHAPE;
    if (*(const float *)alpha != 1 || activation->mode != CUDNN_ACTIVATION_IDENTITY || activation->nan != CUDNN_NOT_PROPAGATE_NAN ||
        algorithm != CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM || bd->type != yd->type)
        return CUDNN_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < 4; i++)
        if (bd->dims[i] != (i == 1 ? yd->dims[1] : 1) || zd->dims[i] != yd->dims[i] || zd->strides[i] != yd->strides[i])
            return CUDNN_STATUS_BAD_PARAM;
    if (!bias || !z || zd->type != yd->type) return CUDNN_STATUS_BAD_PARAM;
    return convolve(h, *xd, x, *wd, w, *cd, *yd, y, {bias, z, *(const float *)alpha2});
}
}

// cuRAND's numbers are not these, but of the same distribution.
#include <curand.h>
#include <cmath>
#include "simulated.h"
struct curandGenerator_st {
    uint64_t state = 88172645463325252ull;
    cudaStream_t stream = nullptr;
    float uniform() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return ((state >> 40) + 1) / 16777217.0f;
    }
};
extern "C" {
curandStatus_t curandCreateGenerator(curandGenerator_t *g, curandRngType_t) {
    *g = new curandGenerator_st;
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandDestroyGenerator(curandGenerator_t g) {
    delete g;
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandSetPseudoRandomGeneratorSeed(curandGenerator_t g, unsigned long long s) {
    g->state = s * 0x9e3779b97f4a7c15ull | 1;
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandSetGeneratorOffset(curandGenerator_t, unsigned long long) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetStream(curandGenerator_t g, cudaStream_t s) {
    g->stream = s;
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandGenerateUniform(curandGenerator_t g, float *p, size_t n) {
    std::function<void()> w = [=] {
        for (size_t i = 0; i < n; i++) p[i] = g->uniform();
    };
    sim_submit(g->stream, "random", "uniform", 0, 4.0 * n, &w);
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandGenerateUniformDouble(curandGenerator_t g, double *p, size_t n) {
    std::function<void()> w = [=] {
        for (size_t i = 0; i < n; i++) p[i] = g->uniform();
    };
    sim_submit(g->stream, "random", "uniform", 0, 8.0 * n, &w);
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandGenerateNormal(curandGenerator_t g, float *p, size_t n, float m, float s) {
    if (n % 2) return CURAND_STATUS_LENGTH_NOT_MULTIPLE;
    std::function<void()> w = [=] {
        for (size_t i = 0; i < n; i++) p[i] = m + s * sqrtf(-2 * logf(g->uniform())) * cosf(6.2831853f * g->uniform());
    };
    sim_submit(g->stream, "random", "normal", 0, 4.0 * n, &w);
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandGenerateNormalDouble(curandGenerator_t g, double *p, size_t n, double m, double s) {
    std::function<void()> w = [=] {
        for (size_t i = 0; i < n; i++) p[i] = m + s * sqrt(-2 * log(g->uniform())) * cos(6.283185307179586 * g->uniform());
    };
    sim_submit(g->stream, "random", "normal", 0, 8.0 * n, &w);
    return CURAND_STATUS_SUCCESS;
}
}

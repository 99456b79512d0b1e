// NVML, as far as atelier asks it: one simulated card.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef int R;
typedef void *D;
static long setting(const char *name, long otherwise) {
    const char *v = getenv(name);
    return v && *v ? atol(v) : otherwise;
}
static long mib(void) { return setting("SIMCUDA_MIB", 81920); }
static int cap(void) { return (int)setting("SIMCUDA_CAP", 90); }
R nvmlInit_v2(void) { return 0; }
R nvmlInitWithFlags(unsigned f) { return 0; }
R nvmlShutdown(void) { return 0; }
R nvmlSystemGetDriverVersion(char *s, unsigned n) {
    snprintf(s, n, "580.00");
    return 0;
}
R nvmlSystemGetCudaDriverVersion_v2(int *v) {
    *v = (int)setting("SIMCUDA_DRIVER", 13000);
    return 0;
}
R nvmlDeviceGetCount_v2(unsigned *n) {
    *n = (unsigned)setting("SIMCUDA_DEVICES", 1);
    return 0;
}
R nvmlDeviceGetHandleByIndex_v2(unsigned i, D *d) {
    *d = (D)(long)(i + 1);
    return 0;
}
R nvmlDeviceGetName(D d, char *s, unsigned n) {
    snprintf(s, n, "Simulated CUDA device");
    return 0;
}
R nvmlDeviceGetUUID(D d, char *s, unsigned n) {
    snprintf(s, n, "GPU-51313131-0000-0000-0000-%012ld", (long)d);
    return 0;
}
R nvmlDeviceGetMemoryInfo(D d, unsigned long long *m) {
    m[0] = (unsigned long long)mib() << 20;
    m[1] = m[0];
    m[2] = 0;
    return 0;
}
R nvmlDeviceGetCudaComputeCapability(D d, int *a, int *b) {
    *a = cap() / 10;
    *b = cap() % 10;
    return 0;
}
R nvmlDeviceGetUtilizationRates(D d, unsigned *u) {
    u[0] = 0;
    u[1] = 0;
    return 0;
}
R nvmlDeviceGetTemperature(D d, int s, unsigned *t) {
    *t = 40;
    return 0;
}
R nvmlDeviceGetPowerUsage(D d, unsigned *p) {
    *p = 100000;
    return 0;
}
const char *nvmlErrorString(R r) { return "simulated"; }
struct M2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};
R nvmlDeviceGetMemoryInfo_v2(D d, struct M2 *m) {
    m->total = (unsigned long long)mib() << 20;
    m->reserved = 0;
    m->free = m->total;
    m->used = 0;
    return 0;
}

// What the stand-ins for cuBLAS, cuDNN and the others ask of the stand-in for the driver.
#pragma once
#include <cstdint>
#include <functional>

extern "C" {
// Queues work on a stream, or records it while the stream is captured. `flops`: what is computed; `bytes`: what is read and written.
void sim_submit(void *stream, const char *kind, const char *detail, double flops, double bytes, std::function<void()> *work);
// Counts a call of the API, for SIMCUDA_STATS.
void sim_count(const char *call);
// Whether nothing is computed or kept, only counted (SIMCUDA_MODE=dry).
int sim_dry();
// In strict mode: faults the device unless all these bytes are on it.
void sim_check_range(const void *first, uint64_t bytes, const char *who);
// Whether the device has met a fault after which every call fails.
int sim_faulted();
}

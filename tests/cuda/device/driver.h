// State of the simulated device that the parts of the driver share.
#pragma once
#include <cuda.h>
#undef cuDeviceTotalMem
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>
#include "simulated.h"

// The driver's one lock: calls come from many threads.
extern std::recursive_mutex driver_lock;
#define LOCK std::lock_guard<std::recursive_mutex> guard_(driver_lock)
#define CALL sim_count(__func__)

const char *setting(const char *name, const char *otherwise);
int number_setting(const char *name, int otherwise);
bool is_lazy();     // SIMCUDA_MODE=lazy: work is done as late as CUDA allows
bool is_checked();  // SIMCUDA_CHECK: memory is checked; what touches other memory faults the device
bool is_poisoned(); // SIMCUDA_POISON: new and freed memory is NaN
int compute_capability();
// Memory of so many bytes is asked for at once: where a dry device may stop to compute.
void asked_for(uint64_t bytes);
int driver_version();
uint64_t memory_limit();

// Where every operation goes (SIMCUDA_LOG), or null.
FILE *operations_log();
uint64_t next_line();

// A fault after which every call on the context fails alike, as after an illegal access on a card.
void fault(CUresult error, const char *format, ...) __attribute__((format(printf, 2, 3)));
CUresult faulted();
#define UNLESS_FAULTED \
    if (CUresult error_ = faulted()) return error_

struct Operation {
    std::string kind, detail;
    double flops = 0, bytes = 0;
    std::function<void()> work;
};
using Operations = std::vector<std::shared_ptr<Operation>>;

struct CUgraph_st {
    std::thread::id thread = {};     // that captures it
    Operations operations = {};
    std::set<CUdeviceptr> allocated = {}; // in the capture, and not freed in it
    bool broken = false;             // by a call that a capture cannot hold: it ends in no graph
};

CUgraph captured_by(CUstream stream); // null where the stream is not captured
bool is_capturing();                  // any stream of this thread
// Whether this thread captures, or the stream is captured; if so the capture is broken.
bool breaks_capture();
bool breaks_capture(CUstream stream);
void submit(CUstream stream, std::shared_ptr<Operation> operation);
void submit(CUstream stream, const char *kind, std::string detail, double bytes, std::function<void()> work);
void do_later(std::function<void()> work); // in lazy mode: when all that was issued before is done
void drain();                              // does all that was issued
void drain_until(uint64_t issued);
uint64_t issued_operations();
bool is_done(uint64_t issued);
#define NOT_CAPTURED(stream) \
    if (breaks_capture(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
#define NOT_CAPTURING \
    if (breaks_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED

// Memory that graphs allocated; freed outside of the capture.
extern std::set<CUdeviceptr> &graph_memory, &freed_of_graphs;
uint64_t used_bytes();
void memory_counts(uint64_t *peak_bytes, uint64_t *live_allocations);

// A kernel translated to C, as `ptx.h` lays it out.
struct Block {
    const uint8_t *param;
    uint8_t *shared;
    uint32_t ntid[3], ctaid[3], nctaid[3];
    uint32_t shared_bytes;
};
struct Thread {
    uint32_t tid[3];
    int pc, status;
    uint32_t mode, val, b, c, mask, out;
    uint8_t pred;
    uint8_t *local;
    uint32_t in[12], outs[8];
    struct Copies *copies; // that have not been waited for, where they are late; else null
};
struct Kernel {
    int static_shared = 0; // declared; in `shared` as well, up to where a launch's own begins
    int shared = 0, meets = 0, state = 0, local = 0;
    void (*run_block)(const Block *) = nullptr;
    int (*step)(const Block *, Thread *, void *) = nullptr;
};
// Runs all blocks of a launch; in reverse order where SIMCUDA_ORDER=reverse, so that blocks that count on each other are found.
void run_grid(const Kernel &kernel, const char *name, const uint8_t *params, const uint32_t grid[3], const uint32_t block[3],
              unsigned dynamic_bytes);

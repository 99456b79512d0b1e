// Memory of the simulated device: the host's, counted and bounded; copies, of pageable and of pinned memory.
#include "driver.h"
#include <map>

// Never destroyed, here and in streams.cpp: threads of the program go on while it ends, and free what they have.
std::set<CUdeviceptr> &graph_memory = *new std::set<CUdeviceptr>, &freed_of_graphs = *new std::set<CUdeviceptr>;
static std::map<uint64_t, uint64_t> &allocations = *new std::map<uint64_t, uint64_t>, &pinned = *new std::map<uint64_t, uint64_t>;
static uint64_t in_use, peak, live;

uint64_t used_bytes() { return in_use; }
void memory_counts(uint64_t *peak_bytes, uint64_t *live_allocations) {
    *peak_bytes = peak;
    *live_allocations = live;
}

static bool contains(const std::map<uint64_t, uint64_t> &ranges, uint64_t first, uint64_t bytes, uint64_t *from, uint64_t *to) {
    auto after = ranges.upper_bound(first);
    if (after == ranges.begin()) return false;
    auto range = std::prev(after);
    *from = range->first;
    *to = range->first + range->second;
    return first + bytes <= *to;
}
static bool is_pinned(const void *address) {
    LOCK;
    uint64_t from, to;
    return contains(pinned, (uint64_t)address, 1, &from, &to);
}

extern "C" void sim_check_range(const void *first, uint64_t bytes, const char *who) {
    if (!is_checked() || !bytes) return;
    LOCK;
    uint64_t from, to;
    if (!contains(allocations, (uint64_t)first, bytes, &from, &to))
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "%s touches %lu bytes at %p, which are not on the device", who, bytes, first);
}
// Every access of a checked kernel comes here: the last range is remembered.
extern "C" void sim_check(const void *first, int bytes, int value_bytes, const char *kernel) {
    static thread_local uint64_t from, to;
    uint64_t address = (uint64_t)first;
    if (address % value_bytes)
        fault(CUDA_ERROR_MISALIGNED_ADDRESS, "%s reads or writes %d bytes at once at %p, which is no multiple", kernel, value_bytes, first);
    if (address >= from && address + bytes <= to) return;
    LOCK;
    if (!contains(allocations, address, bytes, &from, &to)) {
        from = to = 0;
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "%s touches %d bytes at %p, which are not on the device", kernel, bytes, first);
    }
}

extern "C" void sim_check_shared(const void *first, int bytes, const void *shared, uint32_t shared_bytes, const char *kernel) {
    uint64_t at = (uint64_t)first - (uint64_t)shared;
    if (at % bytes) fault(CUDA_ERROR_MISALIGNED_ADDRESS, "%s reads or writes %d bytes at once at %lu of its shared memory", kernel, bytes, at);
    else if (at + bytes > shared_bytes)
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "%s touches %d bytes at %ld of %u bytes of shared memory", kernel, bytes, (long)at, shared_bytes);
}

static CUresult allocate(CUdeviceptr *out, size_t bytes) {
    LOCK;
    if (in_use + bytes > memory_limit()) return CUDA_ERROR_OUT_OF_MEMORY;
    asked_for(bytes);
    void *memory = nullptr;
    size_t taken = bytes ? bytes : 1; // A pool gives memory of no bytes as well.
    if (sim_dry()) {
        static uint64_t next = 0x700000000000ull;
        memory = (void *)next;
        next += (taken + 511) / 512 * 512;
    } else if (posix_memalign(&memory, 512, taken)) return CUDA_ERROR_OUT_OF_MEMORY;
    if (is_poisoned() && !sim_dry()) memset(memory, 0xff, taken);
    allocations[(uint64_t)memory] = bytes;
    in_use += bytes;
    live++;
    if (in_use > peak) peak = in_use;
    *out = (CUdeviceptr)memory;
    return CUDA_SUCCESS;
}
static void release(CUdeviceptr address) {
    LOCK;
    auto found = allocations.find(address);
    if (found == allocations.end()) return fault(CUDA_ERROR_INVALID_VALUE, "%p is freed, but was not allocated", (void *)address);
    if (is_poisoned() && !sim_dry()) memset((void *)address, 0xff, found->second);
    in_use -= found->second;
    live--;
    allocations.erase(found);
    if (!sim_dry()) free((void *)address);
}

extern "C" {
CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
    CALL;
    UNLESS_FAULTED;
    NOT_CAPTURING;
    drain();
    return bytes ? allocate(out, bytes) : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    CALL;
    NOT_CAPTURING;
    drain();
    release(address);
    return CUDA_SUCCESS;
}
CUresult cuMemAllocAsync(CUdeviceptr *out, size_t bytes, CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    LOCK;
    CUresult result = allocate(out, bytes);
    if (result != CUDA_SUCCESS) return result;
    if (CUgraph graph = captured_by(stream)) {
        graph->allocated.insert(*out);
        graph_memory.insert(*out);
    }
    if (operations_log()) fprintf(operations_log(), "%lu\tstream\talloc\t\t0\t%lu\n", next_line(), bytes);
    return CUDA_SUCCESS;
}
CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    LOCK;
    if (CUgraph graph = captured_by(stream)) {
        if (graph->allocated.erase(address)) return CUDA_SUCCESS;
        graph->broken = true;
        fprintf(stderr, "simulated device: %p is freed in a capture, but was allocated outside of it\n", (void *)address);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (graph_memory.count(address)) {
        freed_of_graphs.insert(address);
        return CUDA_SUCCESS;
    }
    do_later([address] { release(address); });
    return CUDA_SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *all_bytes) {
    CALL;
    LOCK;
    *all_bytes = memory_limit();
    *free_bytes = memory_limit() - in_use;
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    sim_check_range((void *)to, bytes, "a copy to the device");
    if (is_pinned(from)) {
        submit(stream, "htod-pinned", "", bytes, [=] { memcpy((void *)to, from, bytes); });
        return CUDA_SUCCESS;
    }
    NOT_CAPTURED(stream);
    // The driver has read pageable memory when the call returns.
    auto kept = std::make_shared<std::vector<uint8_t>>();
    if (!sim_dry()) kept->assign((const uint8_t *)from, (const uint8_t *)from + bytes);
    submit(stream, "htod", "", bytes, [=] { memcpy((void *)to, kept->data(), bytes); });
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    bool to_pinned = is_pinned(to);
    if (!to_pinned) NOT_CAPTURED(stream);
    sim_check_range((void *)from, bytes, "a copy from the device");
    if (sim_dry()) memset(to, 0, bytes);
    submit(stream, to_pinned ? "dtoh-pinned" : "dtoh", "", bytes, [=] { memcpy(to, (void *)from, bytes); });
    if (!to_pinned) drain();
    return faulted();
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    sim_check_range((void *)to, bytes, "a copy on the device");
    sim_check_range((void *)from, bytes, "a copy on the device");
    submit(stream, "dtod", "", 2.0 * bytes, [=] { memmove((void *)to, (void *)from, bytes); });
    return CUDA_SUCCESS;
}
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes, CUstream stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
static CUresult copy_now(void *to, const void *from, size_t bytes) {
    UNLESS_FAULTED;
    NOT_CAPTURING;
    drain();
    if (!sim_dry()) memmove(to, from, bytes);
    return faulted();
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    CALL;
    return copy_now((void *)to, from, bytes);
}
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    CALL;
    if (sim_dry()) memset(to, 0, bytes);
    return copy_now(to, (const void *)from, bytes);
}
CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    CALL;
    return copy_now((void *)to, (const void *)from, bytes);
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    sim_check_range((void *)to, bytes, "a memset");
    submit(stream, "memset", "", bytes, [=] { memset((void *)to, value, bytes); });
    return CUDA_SUCCESS;
}
CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) {
    CALL;
    UNLESS_FAULTED;
    NOT_CAPTURING;
    drain();
    if (!sim_dry()) memset((void *)to, value, bytes);
    return CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned) {
    CALL;
    UNLESS_FAULTED;
    NOT_CAPTURING;
    if (posix_memalign(out, 4096, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    LOCK;
    pinned[(uint64_t)*out] = bytes;
    return CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void *address) {
    CALL;
    drain();
    LOCK;
    pinned.erase((uint64_t)address);
    free(address);
    return CUDA_SUCCESS;
}
CUresult cuMemHostGetFlags(unsigned *flags, void *) {
    *flags = 0;
    return CUDA_SUCCESS;
}
}

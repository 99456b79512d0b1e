// Streams, events and graphs: one queue in order, done at once or as late as CUDA allows.
#include "driver.h"
#include <chrono>
#include <deque>
#include <map>
#include <thread>

struct CUstream_st {
    unsigned flags;
};
struct CUevent_st {
    uint64_t issued = 0;
    double ms = 0;
};
struct CUgraphExec_st {
    Operations operations;
    std::set<CUdeviceptr> allocated;
    bool frees_at_launch, launched = false;
};

struct Queued {
    uint64_t issued;
    std::function<void()> work;
};
static std::deque<Queued> &queue = *new std::deque<Queued>;
static uint64_t issued;

// The stream of each thread (2) is another one in each thread.
using Key = std::pair<void *, std::thread::id>;
static CUstream const per_thread = (CUstream)2;
static std::map<Key, CUgraph> &captures = *new std::map<Key, CUgraph>;
static Key key(CUstream stream) { return {stream, stream == per_thread ? std::this_thread::get_id() : std::thread::id()}; }
static std::map<std::thread::id, int> &capturing_threads = *new std::map<std::thread::id, int>;

CUgraph captured_by(CUstream stream) {
    LOCK;
    auto found = captures.find(key(stream));
    return found == captures.end() ? nullptr : found->second;
}
bool is_capturing() {
    LOCK;
    auto found = capturing_threads.find(std::this_thread::get_id());
    return found != capturing_threads.end() && found->second > 0;
}
bool breaks_capture(CUstream stream) {
    LOCK;
    CUgraph graph = captured_by(stream);
    if (graph) graph->broken = true;
    return graph;
}
bool breaks_capture() {
    LOCK;
    if (!is_capturing()) return false;
    for (auto &[_, graph] : captures) graph->broken |= graph->thread == std::this_thread::get_id();
    return true;
}

static void note(const Operation &operation, const char *how) {
    if (operations_log())
        fprintf(operations_log(), "%lu\t%s\t%s\t%s\t%.0f\t%.0f\n", next_line(), how, operation.kind.c_str(), operation.detail.c_str(),
                operation.flops, operation.bytes);
}
static void run(const Operation &operation) {
    if (operation.work && !sim_dry() && !faulted()) operation.work();
}
void do_later(std::function<void()> work) {
    LOCK;
    issued++;
    if (is_lazy()) queue.push_back({issued, std::move(work)});
    else work();
}
void submit(CUstream stream, std::shared_ptr<Operation> operation) {
    LOCK;
    if (CUgraph graph = captured_by(stream)) {
        graph->operations.push_back(operation);
        return note(*operation, "captured");
    }
    note(*operation, "stream");
    do_later([operation] { run(*operation); });
}
void submit(CUstream stream, const char *kind, std::string detail, double bytes, std::function<void()> work) {
    sim_submit(stream, kind, detail.c_str(), 0, bytes, &work);
}
extern "C" void sim_submit(void *stream, const char *kind, const char *detail, double flops, double bytes, std::function<void()> *work) {
    auto operation = std::make_shared<Operation>(Operation{kind, detail, flops, bytes, std::move(*work)});
    sim_count((std::string("op ") + kind).c_str());
    submit((CUstream)stream, operation);
}
void drain_until(uint64_t last) {
    LOCK;
    while (!queue.empty() && queue.front().issued <= last) {
        auto work = std::move(queue.front().work);
        queue.pop_front();
        work();
    }
}
void drain() { drain_until(~0ull); }

static double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

extern "C" {
CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    CALL;
    UNLESS_FAULTED;
    *stream = new CUstream_st{flags};
    return CUDA_SUCCESS;
}
CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
CUresult cuStreamDestroy_v2(CUstream stream) {
    CALL;
    drain();
    delete stream;
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    NOT_CAPTURED(stream);
    {
        LOCK;
        if (operations_log()) fprintf(operations_log(), "%lu\tstream\tsync\t\t0\t0\n", next_line());
    }
    drain();
    return faulted();
}
CUresult cuStreamQuery(CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    NOT_CAPTURED(stream);
    LOCK;
    return queue.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
// One queue: what comes later always waits.
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) {
    CALL;
    return faulted();
}
CUresult cuEventCreate(CUevent *event, unsigned) {
    CALL;
    UNLESS_FAULTED;
    *event = new CUevent_st;
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy_v2(CUevent event) {
    CALL;
    delete event;
    return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    LOCK;
    if (captured_by(stream)) return CUDA_SUCCESS;
    event->issued = issued;
    event->ms = now_ms();
    return CUDA_SUCCESS;
}
CUresult cuEventSynchronize(CUevent event) {
    CALL;
    UNLESS_FAULTED;
    NOT_CAPTURING;
    drain_until(event->issued);
    return faulted();
}
CUresult cuEventQuery(CUevent event) {
    CALL;
    UNLESS_FAULTED;
    LOCK;
    return queue.empty() || queue.front().issued > event->issued ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
    *ms = (float)(to->ms - from->ms);
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    CALL;
    CUgraph graph = captured_by(stream);
    *status = !graph ? CU_STREAM_CAPTURE_STATUS_NONE : graph->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}
CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode) {
    CALL;
    UNLESS_FAULTED;
    LOCK;
    if (!number_setting("SIMCUDA_GRAPHS", 1)) return CUDA_ERROR_NOT_SUPPORTED;
    // The legacy stream cannot be captured.
    if (!stream || captured_by(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    drain();
    captures[key(stream)] = new CUgraph_st{.thread = std::this_thread::get_id()};
    capturing_threads[std::this_thread::get_id()]++;
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    CALL;
    LOCK;
    *graph = captured_by(stream);
    if (!*graph) return CUDA_ERROR_INVALID_VALUE;
    captures.erase(key(stream));
    capturing_threads[std::this_thread::get_id()]--;
    if ((*graph)->broken) {
        delete *graph;
        *graph = nullptr;
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    return faulted();
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph graph, unsigned long long flags) {
    CALL;
    UNLESS_FAULTED;
    bool frees = flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    *out = new CUgraphExec_st{graph->operations, graph->allocated, frees};
    return CUDA_SUCCESS;
}
CUresult cuGraphUpload(CUgraphExec, CUstream) {
    CALL;
    return faulted();
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    CALL;
    UNLESS_FAULTED;
    {
        LOCK;
        for (CUdeviceptr address : graph->allocated)
            if (graph->launched && !graph->frees_at_launch && !freed_of_graphs.count(address)) {
                fprintf(stderr, "simulated device: a graph is launched again, but what it allocated was not freed\n");
                return CUDA_ERROR_INVALID_VALUE;
            }
        graph->launched = true;
        for (CUdeviceptr address : graph->allocated) freed_of_graphs.erase(address);
    }
    Operations operations = graph->operations;
    {
        LOCK;
        for (auto &operation : operations) note(*operation, "replayed");
    }
    submit(stream, "graph", std::to_string(operations.size()) + " operations", 0, [operations] {
        for (auto &operation : operations) run(*operation);
    });
    return CUDA_SUCCESS;
}
CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *, size_t *count) {
    CALL;
    *count = graph->operations.size();
    return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec graph) {
    CALL;
    drain();
    delete graph;
    return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) {
    CALL;
    delete graph;
    return CUDA_SUCCESS;
}
}

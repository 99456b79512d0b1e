// Settings of the simulated device, what it counts, and its faults.
#include "driver.h"
#include <atomic>
#include <cstdarg>
#include <map>
#include <unistd.h>

using std::string;

std::recursive_mutex driver_lock;

const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}
int number_setting(const char *name, int otherwise) {
    const char *value = setting(name, nullptr);
    return value ? atoi(value) : otherwise;
}
bool is_lazy() {
    static const bool lazy = !strcmp(setting("SIMCUDA_MODE", "eager"), "lazy");
    return lazy;
}
bool is_checked() {
    static const bool checked = number_setting("SIMCUDA_CHECK", 0);
    return checked;
}
bool is_poisoned() {
    static const bool poisoned = number_setting("SIMCUDA_POISON", 0);
    return poisoned;
}
int compute_capability() {
    static const int capability = number_setting("SIMCUDA_CAP", 90);
    return capability;
}
int driver_version() {
    static const int version = number_setting("SIMCUDA_DRIVER", 13000);
    return version;
}
uint64_t memory_limit() {
    static const uint64_t bytes = strtoull(setting("SIMCUDA_MIB", "81920"), nullptr, 10) << 20;
    return bytes;
}
static bool &dry() {
    static bool from_now_on = !strcmp(setting("SIMCUDA_MODE", "eager"), "dry") && !number_setting("SIMCUDA_DRY_FROM_MIB", 0);
    return from_now_on;
}
extern "C" int sim_dry() { return dry(); }
void asked_for(uint64_t bytes) {
    static const uint64_t from = (uint64_t)number_setting("SIMCUDA_DRY_FROM_MIB", 0) << 20;
    static const bool may = !strcmp(setting("SIMCUDA_MODE", "eager"), "dry");
    if (may && from && bytes >= from) dry() = true;
}

// Never destroyed: `report` runs after the destructors of statics.
static std::map<string, uint64_t> &calls() {
    static auto *counted = new std::map<string, uint64_t>;
    return *counted;
}
extern "C" void sim_count(const char *call) {
    LOCK;
    calls()[call]++;
}

FILE *operations_log() {
    static FILE *log = []() -> FILE * {
        string path = setting("SIMCUDA_LOG", "");
        if (path.empty()) return nullptr;
        size_t at = path.find("%p");
        if (at != string::npos) path.replace(at, 2, std::to_string(getpid()));
        FILE *opened = fopen(path.c_str(), "w");
        if (opened) setvbuf(opened, nullptr, _IOFBF, 1 << 16);
        return opened;
    }();
    return log;
}
uint64_t next_line() {
    static uint64_t line;
    return line++;
}

static void report() {
    if (operations_log()) fflush(operations_log());
    const char *path = setting("SIMCUDA_STATS", nullptr);
    FILE *file = path ? fopen(path, "a") : nullptr;
    if (!file) return;
    uint64_t peak, live;
    memory_counts(&peak, &live);
    fprintf(file, "{\"pid\":%d,\"peak_bytes\":%lu,\"live_allocations\":%lu", getpid(), peak, live);
    for (auto &[name, count] : calls()) fprintf(file, ",\"%s\":%lu", name.c_str(), count);
    fprintf(file, "}\n");
    fclose(file);
}
__attribute__((constructor)) static void report_at_exit() { atexit(report); }

static std::atomic<int> sticky{CUDA_SUCCESS};
void fault(CUresult error, const char *format, ...) {
    static std::atomic<int> said;
    if (said++ < 20) {
        char text[512];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        fprintf(stderr, "simulated device: %s\n", text);
    }
    int none = CUDA_SUCCESS;
    sticky.compare_exchange_strong(none, error);
    if (number_setting("SIMCUDA_CHECK", 0) > 1) abort();
}
CUresult faulted() { return (CUresult)sticky.load(); }
extern "C" int sim_faulted() { return faulted() != CUDA_SUCCESS; }

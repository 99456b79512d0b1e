// Modules and launches: PTX is translated to C kernel by kernel, compiled, and kept in SIMCUDA_CACHE by the hash of its module.
#include "driver.h"
#include <algorithm>
#include <dlfcn.h>
#include <map>
#include <sys/stat.h>
#include <unistd.h>

using std::string;

struct CUmod_st {
    string text, path, hash;
    std::map<string, CUfunction> functions;
    std::set<string> names;
};
struct Parameter {
    int offset, bytes;
};
struct CUfunc_st {
    CUmod_st *module;
    string name;
    std::vector<Parameter> parameters;
    int parameter_bytes = 0;
    unsigned most_threads = 1024;       // .maxntid
    unsigned most_dynamic_bytes = 48 << 10; // until the attribute allows more
    bool built = false;
    int registers = -1; // of a thread, as ptxas gives them for this device; 0 where there is no ptxas
    Kernel kernel;
};

static string hash_of(const string &text) {
    uint64_t hash = 1469598103934665603ull; // FNV-1a
    for (unsigned char byte : text) hash = (hash ^ byte) * 1099511628211ull;
    char hex[32];
    snprintf(hex, sizeof hex, "%016lx", hash);
    return hex;
}
// Where translate.py and ptx.h are.
static string home() {
    Dl_info info;
    dladdr((void *)&hash_of, &info);
    string path = info.dli_fname;
    return setting("SIMCUDA_HOME", (path.substr(0, path.find_last_of('/')) + "/..").c_str());
}
static string cache() {
    static const string path = [] {
        string path = setting("SIMCUDA_CACHE", "target/simulated-device");
        mkdir(path.c_str(), 0755);
        return path;
    }();
    return path;
}

static string read_file(const string &path) {
    FILE *file = fopen(path.c_str(), "r");
    string text;
    char part[65536];
    for (size_t read; file && (read = fread(part, 1, sizeof part, file)) > 0;) text.append(part, read);
    if (file) fclose(file);
    return text;
}
// What a kernel is translated by: another translator makes another kernel.
static const string &translator() {
    static const string text = read_file(home() + "/translate.py") + read_file(home() + "/ptx.h");
    return text;
}

// What a driver refuses: PTX of a newer version than it knows, and of an architecture that the device is not.
static CUresult refused(const string &text) {
    int major = 0, minor = 0;
    size_t at = text.find(".version ");
    if (at == string::npos || sscanf(text.c_str() + at, ".version %d.%d", &major, &minor) != 2) return CUDA_ERROR_INVALID_PTX;
    // PTX 9.0 came with CUDA 13.0, 8.x with 12.x (PTX manual, "Release Notes"): the minor numbers agree closely enough up to 12.9.
    int needs = (major + 4) * 1000 + (major >= 9 ? minor * 10 : 0);
    if (needs > driver_version()) {
        fprintf(stderr, "simulated device: PTX %d.%d is newer than a driver of CUDA %d\n", major, minor, driver_version());
        return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    }
    int target = 0;
    char suffix = 0;
    at = text.find(".target sm_");
    if (at == string::npos || sscanf(text.c_str() + at, ".target sm_%d%c", &target, &suffix) < 1) return CUDA_ERROR_INVALID_PTX;
    bool fits = suffix == 'a'   ? target == compute_capability()
                : suffix == 'f' ? target / 10 == compute_capability() / 10 && target <= compute_capability()
                                : target <= compute_capability();
    if (fits) return CUDA_SUCCESS;
    fprintf(stderr, "simulated device: PTX for sm_%d%c does not run on %d\n", target, suffix > ' ' ? suffix : ' ', compute_capability());
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
}

static int bytes_of(const string &type) {
    static const std::map<string, int> sizes = {{"8", 1}, {"16", 2}, {"32", 4}, {"64", 8}};
    size_t digits = type.find_first_of("0123456789");
    auto found = sizes.find(digits == string::npos ? "" : type.substr(digits));
    return found == sizes.end() ? 0 : found->second;
}
// Offsets and sizes of the parameters, as the compiler lays them out.
static void read_declaration(CUfunc_st *function) {
    const string &text = function->module->text;
    size_t at = text.find(".entry " + function->name + "(");
    size_t open = text.find('(', at), close = text.find(')', open);
    string declaration = text.substr(open + 1, close - open - 1);
    int offset = 0;
    for (size_t from = 0; (from = declaration.find(".param", from)) != string::npos;) {
        size_t comma = declaration.find(',', from);
        string one = declaration.substr(from, comma == string::npos ? string::npos : comma - from);
        from += 6;
        int align = 0, count = 1, bytes = 0;
        char type[16] = "";
        size_t where = one.find(".align");
        if (where != string::npos && one.find(".ptr") == string::npos) align = atoi(one.c_str() + where + 6);
        for (size_t dot = one.find('.', 1); dot != string::npos && !bytes; dot = one.find('.', dot + 1))
            if (sscanf(one.c_str() + dot, ".%15[a-z0-9]", type) == 1) bytes = bytes_of(type);
        size_t bracket = one.find('[');
        if (bracket != string::npos) count = atoi(one.c_str() + bracket + 1);
        if (!align) align = bytes ? bytes : 8;
        offset = (offset + align - 1) / align * align;
        function->parameters.push_back({offset, bytes * count});
        offset += bytes * count;
    }
    function->parameter_bytes = offset;
    size_t body = text.find('{', close), most = text.find(".maxntid", close);
    unsigned x = 1, y = 1, z = 1;
    if (most < body && sscanf(text.c_str() + most, ".maxntid %u, %u, %u", &x, &y, &z) >= 1) function->most_threads = x * y * z;
}

// Made by `command` with a path to write to, once: kept in the cache.
static bool made(const string &path, const string &command, const string &from) {
    if (!access(path.c_str(), R_OK)) return true;
    string part = path + "." + std::to_string(getpid());
    if (system((command + " > " + part + from).c_str())) return false;
    return !rename(part.c_str(), path.c_str());
}
// Registers of a thread, by the assembler that a driver has inside. A driver refuses blocks that need more than a multiprocessor has.
static int registers_of(CUfunc_st *function) {
    const char *toolkit = setting("CUDA_HOME", nullptr);
    if (!toolkit) return 0;
    string target = "sm_" + std::to_string(compute_capability());
    string path = cache() + "/" + function->module->hash + "." + function->name + "." + target + ".registers";
    string assemble = "env -u LD_LIBRARY_PATH " + string(toolkit) + "/bin/ptxas -v -arch " + target + " -e " + function->name + " -o /dev/null " +
                      function->module->path;
    if (!made(path, assemble, " 2>&1")) return 0;
    string text = read_file(path);
    int registers = 0;
    size_t at = text.find("Used ");
    if (at != string::npos) sscanf(text.c_str() + at, "Used %d registers", &registers);
    return registers;
}
// A warp has its registers in units of 256; a block's warps are on one multiprocessor, which has 65,536 (CUDA C++ Programming Guide, "Technical
// Specifications per Compute Capability").
static bool has_registers(CUfunc_st *function, unsigned threads) {
    LOCK;
    if (function->registers < 0) function->registers = registers_of(function);
    unsigned of_warp = (function->registers * 32 + 255) / 256 * 256;
    return (threads + 31) / 32 * of_warp <= 65536;
}

static bool translate(CUfunc_st *function, const string &base, const string &so) {
    string here = home(), made = base + "." + std::to_string(getpid());
    string command = "env -u LD_LIBRARY_PATH sh -c 'python3 " + here + "/translate.py " + function->module->path + " " + function->name +
                     " > " + made + ".c && gcc -O2 -march=native -ffp-contract=off -fno-strict-aliasing -fwrapv -w -shared -fPIC " +
                     (is_checked() ? "-DCHECKED " : "") + "-I" + here + " -o " + made + ".so " + made + ".c -lm && mv " + made + ".c " +
                     base + ".c && mv " + made + ".so " + so + "'";
    if (!system(command.c_str())) return true;
    fault(CUDA_ERROR_LAUNCH_FAILED, "%s could not be translated", function->name.c_str());
    return false;
}
static bool build(CUfunc_st *function) {
    LOCK;
    if (function->built) return true;
    string base = cache() + "/" + function->module->hash + "." + function->name + (is_checked() ? ".checked" : "");
    string so = base + ".so";
    if (access(so.c_str(), R_OK) && !translate(function, base, so)) return false;
    void *library = dlopen(so.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fault(CUDA_ERROR_LAUNCH_FAILED, "%s", dlerror());
        return false;
    }
    const int *meta = (const int *)dlsym(library, "meta_");
    Kernel &kernel = function->kernel;
    kernel.shared = meta[1];
    kernel.static_shared = *(const int *)dlsym(library, "static_shared");
    kernel.meets = meta[2];
    kernel.state = *(const int *)dlsym(library, "state_size");
    kernel.local = *(const int *)dlsym(library, "local_size");
    *(void **)&kernel.run_block = dlsym(library, "run_block");
    *(void **)&kernel.step = dlsym(library, "step");
    if (meta[0] != function->parameter_bytes)
        fault(CUDA_ERROR_LAUNCH_FAILED, "%s has %d bytes of parameters, not %d", function->name.c_str(), meta[0], function->parameter_bytes);
    function->built = true;
    return true;
}

// Whether the device is to break in this process: with SIMCUDA_FAIL_ONCE one process alone, which leaves the file of that name.
static bool may_break() {
    const char *mark = setting("SIMCUDA_FAIL_ONCE", nullptr);
    FILE *made = mark ? fopen(mark, "wx") : nullptr;
    if (made) fclose(made);
    return !mark || made;
}
// After so many launches every call fails alike, as after an illegal access.
static void count_launch() {
    static uint64_t launches;
    static const uint64_t fails_after = strtoull(setting("SIMCUDA_FAIL_AFTER", "0"), nullptr, 10);
    LOCK;
    if (fails_after && ++launches == fails_after && !faulted() && may_break())
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "fails after %lu launches, as SIMCUDA_FAIL_AFTER says", fails_after);
}

extern "C" {
CUresult cuModuleLoadData(CUmodule *out, const void *image) {
    CALL;
    UNLESS_FAULTED;
    NOT_CAPTURING;
    auto module = std::make_unique<CUmod_st>();
    module->text = (const char *)image;
    if (CUresult error = refused(module->text)) return error;
    module->hash = hash_of(module->text + translator());
    module->path = cache() + "/" + module->hash + ".ptx";
    if (access(module->path.c_str(), R_OK)) {
        string made = module->path + "." + std::to_string(getpid());
        FILE *file = fopen(made.c_str(), "w");
        if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
        fwrite(module->text.data(), 1, module->text.size(), file);
        fclose(file);
        rename(made.c_str(), module->path.c_str());
    }
    for (size_t at = 0; (at = module->text.find(".entry ", at)) != string::npos;) {
        at += 7;
        module->names.insert(module->text.substr(at, module->text.find_first_of(" (\n\t", at) - at));
    }
    *out = (CUmodule)module.release();
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned, CUjit_option *, void **) { return cuModuleLoadData(out, image); }
CUresult cuModuleLoad(CUmodule *out, const char *path) {
    string text = read_file(path);
    return text.empty() ? CUDA_ERROR_FILE_NOT_FOUND : cuModuleLoadData(out, text.c_str());
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *out, CUmodule module_, const char *name) {
    CALL;
    UNLESS_FAULTED;
    LOCK;
    auto *module = (CUmod_st *)module_;
    if (!module->names.count(name)) return CUDA_ERROR_NOT_FOUND;
    CUfunction &function = module->functions[name];
    if (!function) {
        function = new CUfunc_st{module, name};
        read_declaration(function);
    }
    *out = function;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    CALL;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    int most;
    cuDeviceGetAttribute(&most, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0);
    if (value < 0 || value > most) return CUDA_ERROR_INVALID_VALUE;
    function->most_dynamic_bytes = value;
    return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute, CUfunction) {
    *value = 0;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned dynamic_bytes, CUstream stream, void **arguments, void **) {
    CALL;
    count_launch();
    UNLESS_FAULTED;
    bool fits = gx && gy && gz && bx && by && bz && gx <= 0x7fffffffu && gy <= 65535 && gz <= 65535 && bz <= 64 && bx * by * bz <= 1024;
    if (!fits || bx * by * bz > function->most_threads || dynamic_bytes > function->most_dynamic_bytes) {
        fprintf(stderr, "simulated device: %s has no grid of %u %u %u with blocks of %u %u %u and %u bytes of shared memory\n",
                function->name.c_str(), gx, gy, gz, bx, by, bz, dynamic_bytes);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!sim_dry() && (!build(function) || function->kernel.static_shared + dynamic_bytes > std::max(function->most_dynamic_bytes, 48u << 10))) {
        fprintf(stderr, "simulated device: %s has %d bytes of shared memory, and %u at the launch\n", function->name.c_str(),
                function->kernel.static_shared, dynamic_bytes);
        return faulted() ? faulted() : CUDA_ERROR_INVALID_VALUE;
    }
    if (!sim_dry() && !has_registers(function, bx * by * bz)) {
        fprintf(stderr, "simulated device: %s has %d registers, too many for %u threads\n", function->name.c_str(), function->registers, bx * by * bz);
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    }
    auto kept = std::make_shared<std::vector<uint8_t>>(function->parameter_bytes + 16);
    for (size_t i = 0; i < function->parameters.size(); i++)
        memcpy(kept->data() + function->parameters[i].offset, arguments[i], function->parameters[i].bytes);
    string detail = function->name;
    if (operations_log()) {
        char part[96];
        snprintf(part, sizeof part, " %ux%ux%u %ux%ux%u", gx, gy, gz, bx, by, bz);
        detail += part;
        for (auto &parameter : function->parameters) {
            uint64_t value = 0;
            memcpy(&value, kept->data() + parameter.offset, parameter.bytes < 8 ? parameter.bytes : 8);
            snprintf(part, sizeof part, parameter.bytes > 8 ? " ?" : value > (1ull << 40) ? " @%lx" : " %lu", value);
            detail += part;
        }
    }
    sim_count(("kernel " + function->name).c_str());
    submit(stream, "kernel", detail, 0, [=] {
        const uint32_t grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        if (build(function)) run_grid(function->kernel, function->name.c_str(), kept->data(), grid, block, dynamic_bytes);
    });
    return CUDA_SUCCESS;
}
}

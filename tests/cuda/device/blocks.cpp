// Runs the blocks of a launch: those whose threads never meet in a loop, the others thread by thread to where they meet.
#include "driver.h"
#include "numbers.h"
#include <algorithm>
#include <deque>

// As `ptx.h` has them.
enum { DONE, AT_BARRIER, AT_SHUFFLE, AT_VOTE, AT_WARP, AT_MMA, AT_LDMATRIX, RUNNING };

// Copies of a thread from global to shared memory, which are done when it waits for their group: no sooner, as a card may have it.
struct Copies {
    struct Copy {
        uint8_t *to;
        const uint8_t *from;
        uint32_t bytes, of;
    };
    std::vector<Copy> open; // of no group yet
    std::deque<std::vector<Copy>> groups;
};
extern "C" {
void sim_copy_late(void *copies, uint8_t *to, const uint8_t *from, uint32_t bytes, uint32_t of) {
    ((Copies *)copies)->open.push_back({to, from, bytes, of});
}
void sim_end_group(void *copies) {
    auto *all = (Copies *)copies;
    all->groups.push_back(std::move(all->open));
    all->open.clear();
}
void sim_await_groups(void *copies, uint32_t left) {
    auto &groups = ((Copies *)copies)->groups;
    for (; groups.size() > left; groups.pop_front())
        for (const auto &copy : groups.front()) {
            memcpy(copy.to, copy.from, copy.bytes);
            memset(copy.to + copy.bytes, 0, copy.of - copy.bytes);
        }
}
}

// Calls `each` with every lane of a warp that is among `members`, a bit for each.
template <typename F>
static void for_lanes(uint32_t members, F each) {
    for (uint32_t left = members; left; left &= left - 1) each(__builtin_ctz(left));
}

// shfl: PTX manual, "Data Movement and Conversion Instructions: shfl.sync".
static void shuffle(Thread *warp, uint32_t members) {
    for_lanes(members, [&](int lane) {
        Thread &thread = warp[lane];
        int clamp = thread.c & 31, segment = thread.c >> 8 & 31, source = 0;
        int least = lane & segment, most = least | (clamp & ~segment);
        bool in_range = true;
        switch (thread.mode) {
        case 0: source = lane ^ (thread.b & 31); in_range = source <= most; break;
        case 1: source = lane + (thread.b & 31); in_range = source <= most; break;
        case 2: source = lane - (thread.b & 31); in_range = source >= most; break;
        default: source = least | (thread.b & 31 & ~segment); in_range = source <= most;
        }
        int from = in_range ? source : lane;
        thread.out = members >> from & 1 ? warp[from].val : thread.val;
        thread.pred = in_range;
    });
}
static void vote(Thread *warp, uint32_t members) {
    uint32_t ballot = 0;
    for_lanes(members, [&](int lane) {
        if (warp[lane].val) ballot |= 1u << lane;
    });
    for_lanes(members, [&](int lane) {
        Thread &thread = warp[lane];
        switch (thread.mode) {
        case 0: thread.out = ballot == members; break;
        case 1: thread.out = ballot != 0; break;
        case 2: thread.out = ballot == 0 || ballot == members; break;
        default: thread.out = ballot;
        }
    });
}
// m16n8k16 (or k8) of f16 or bf16, sums in f32 or f16: who holds what is in the PTX manual, "Matrix fragments for mma.m16n8k16".
static void multiply(Thread *warp) {
    bool is_bf16 = warp->mode & 1, sums_in_half = warp->mode & 2;
    int depth = warp->mode & 4 ? 8 : 16;
    float a[16][16] = {}, b[16][8] = {}, d[16][8];
    auto value = [&](uint32_t pair, int half) {
        uint16_t bits = (uint16_t)(pair >> (16 * half));
        return is_bf16 ? b2f(bits) : h2f(bits);
    };
    for (int lane = 0; lane < 32; lane++) {
        const uint32_t *in = warp[lane].in;
        int row = lane / 4, pair = lane % 4 * 2;
        for (int half = 0; half < 2; half++) {
            int column = pair + half;
            a[row][column] = value(in[0], half);
            a[row + 8][column] = value(in[1], half);
            b[column][row] = value(in[4], half);
            if (depth == 16) {
                a[row][column + 8] = value(in[2], half);
                a[row + 8][column + 8] = value(in[3], half);
                b[column + 8][row] = value(in[5], half);
            }
            if (sums_in_half) {
                d[row][column] = h2f((uint16_t)(in[6] >> (16 * half)));
                d[row + 8][column] = h2f((uint16_t)(in[7] >> (16 * half)));
            } else {
                memcpy(&d[row][column], &in[6 + half], 4);
                memcpy(&d[row + 8][column], &in[8 + half], 4);
            }
        }
    }
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            double sum = d[i][j];
            for (int k = 0; k < depth; k++) sum += (double)a[i][k] * b[k][j];
            d[i][j] = (float)sum;
        }
    for (int lane = 0; lane < 32; lane++) {
        uint32_t *out = warp[lane].outs;
        int row = lane / 4, pair = lane % 4 * 2;
        for (int half = 0; half < 2; half++)
            if (sums_in_half) out[half] = f2h(d[row + 8 * half][pair]) | (uint32_t)f2h(d[row + 8 * half][pair + 1]) << 16;
            else {
                memcpy(&out[half], &d[row][pair + half], 4);
                memcpy(&out[2 + half], &d[row + 8][pair + half], 4);
            }
    }
}
// ldmatrix: 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
static void load_matrices(Thread *warp, const uint8_t *shared, uint32_t shared_bytes, const char *name) {
    int count = warp->mode & 7;
    bool transposed = warp->mode & 8;
    for (int matrix = 0; matrix < count; matrix++)
        for (int row = 0; row < 8; row++) {
            uint32_t at = warp[matrix * 8 + row].val;
            if (at % 16 || at + 16 > shared_bytes) {
                fault(CUDA_ERROR_MISALIGNED_ADDRESS, "%s loads a matrix's row at %u of %u bytes of shared memory", name, at, shared_bytes);
                return;
            }
        }
    for (int matrix = 0; matrix < count; matrix++) {
        // Eight rows are read at once where they lie in different banks: 32 of 4 bytes, of which a row takes four.
        uint32_t banks = 0;
        for (int row = 0; row < 8; row++) banks |= 1u << warp[matrix * 8 + row].val / 16 % 8;
        if (banks != 0xff) sim_count("bank conflict of ldmatrix");
    }
    for (int matrix = 0; matrix < count; matrix++)
        for (int lane = 0; lane < 32; lane++) {
            uint32_t pair = 0;
            for (int half = 0; half < 2; half++) {
                int row = transposed ? lane % 4 * 2 + half : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + half;
                uint16_t bits;
                memcpy(&bits, shared + warp[matrix * 8 + row].val + 2 * column, 2);
                pair |= (uint32_t)bits << (16 * half);
            }
            warp[lane].outs[matrix] = pair;
        }
}

// Those lanes of a warp, `members`, that wait at one place: gives each what it asked for.
static void exchange(Thread *warp, uint32_t members, const Block &block, const char *name) {
    int status = warp[__builtin_ctz(members)].status;
    bool whole = members == ~0u;
    if (status == AT_SHUFFLE) shuffle(warp, members);
    else if (status == AT_VOTE) vote(warp, members);
    else if (status == AT_MMA && whole) multiply(warp);
    else if (status == AT_LDMATRIX && whole) load_matrices(warp, block.shared, block.shared_bytes, name);
    else if (status != AT_WARP)
        fault(CUDA_ERROR_LAUNCH_FAILED, "%s: %d threads of a warp have come to a tensor core", name, __builtin_popcount(members));
    for_lanes(members, [&](int lane) { warp[lane].status = RUNNING; });
}

static bool waits_in_warp(const Thread &thread) { return thread.status >= AT_SHUFFLE && thread.status <= AT_LDMATRIX; }

static void run_meeting(const Kernel &kernel, const char *name, const Block &block, std::vector<Thread> &threads, std::vector<uint8_t> &state,
                        std::vector<uint8_t> &local, std::vector<Copies> &copies) {
    int count = block.ntid[0] * block.ntid[1] * block.ntid[2], index = 0;
    for (uint32_t z = 0; z < block.ntid[2]; z++)
        for (uint32_t y = 0; y < block.ntid[1]; y++)
            for (uint32_t x = 0; x < block.ntid[0]; x++, index++) {
                threads[index] = Thread{{x, y, z}};
                threads[index].status = RUNNING;
                threads[index].local = local.data() + (size_t)index * kernel.local;
                if (is_lazy()) {
                    copies[index] = Copies{};
                    threads[index].copies = &copies[index];
                }
            }
    for (;;) {
        int waiting = 0;
        for (int first = 0; first < count; first += 32) {
            int end = std::min(count, first + 32);
            for (;;) {
                // The place with the lowest number goes first: those before it may still come to where the others wait.
                int place = 1 << 30;
                uint32_t members = 0;
                for (int i = first; i < end; i++) {
                    Thread &thread = threads[i];
                    if (thread.status == RUNNING) thread.status = kernel.step(&block, &thread, state.data() + (size_t)i * kernel.state);
                    if (!waits_in_warp(thread) || thread.pc > place) continue;
                    if (thread.pc < place) place = thread.pc, members = 0;
                    members |= 1u << (i - first);
                }
                if (faulted()) return;
                if (!members) break;
                exchange(&threads[first], members, block, name);
            }
            for (int i = first; i < end; i++) waiting += threads[i].status == AT_BARRIER;
        }
        if (!waiting) return;
        for (int i = 0; i < count; i++)
            if (threads[i].status == AT_BARRIER) threads[i].status = RUNNING;
    }
}

void run_grid(const Kernel &kernel, const char *name, const uint8_t *params, const uint32_t grid[3], const uint32_t ntid[3],
              unsigned dynamic_bytes) {
    static const bool reverse = !strcmp(setting("SIMCUDA_ORDER", "forward"), "reverse");
    uint32_t shared_bytes = kernel.shared + dynamic_bytes;
    std::vector<uint8_t> shared(shared_bytes + 256), state, local;
    uint8_t *aligned = (uint8_t *)(((uint64_t)shared.data() + 127) / 128 * 128);
    Block block{params, aligned, {ntid[0], ntid[1], ntid[2]}, {0, 0, 0}, {grid[0], grid[1], grid[2]}, shared_bytes};
    size_t count = (size_t)ntid[0] * ntid[1] * ntid[2];
    std::vector<Thread> threads;
    std::vector<Copies> copies(is_lazy() && kernel.meets ? count : 0);
    if (kernel.meets) {
        threads.resize(count);
        state.resize(count * kernel.state + 64);
        local.resize(count * kernel.local + 64);
    }
    uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    for (uint64_t i = 0; i < blocks && !faulted(); i++) {
        uint64_t at = reverse ? blocks - 1 - i : i;
        block.ctaid[0] = at % grid[0];
        block.ctaid[1] = at / grid[0] % grid[1];
        block.ctaid[2] = at / grid[0] / grid[1];
        // What one block left in shared memory is no other block's.
        if (is_poisoned()) memset(shared.data(), 0xff, shared.size());
        if (kernel.meets) run_meeting(kernel, name, block, threads, state, local, copies);
        else kernel.run_block(&block);
    }
}

// A worker is a thread of the host that runs blocks, one after the other: each CUDA thread of a block is a fiber.
#pragma once
#include <csignal>

#include <atomic>
#include <deque>
#include <mutex>
#include <vector>

#include "../shim/launch.h"
#include "../shim/tensor.h"
#include "../shim/warp.h"
#include "context.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emu {

constexpr unsigned MAX_THREADS = 1024, LANES = 32;
constexpr size_t PAGE = 4096, GUARD = 1 << 20, STACK = 1 << 17, MAX_SHARED = 57 * PAGE;
constexpr size_t STATIC_SHARED = 48 << 10, DYNAMIC_ALIGN = 16;

struct Parameters {  // of a launch, as the host gives them
    unsigned grid[3], block[3];
    unsigned dynamic_shared, max_shared;
    int workers, order;  // order: 0 forward, 1 reverse, others are seeds
};

struct Failure {  // what the host is told of the first error
    char text[512], file[256];
    int line;
    void* address;  // of the instruction, where the line is not known
    unsigned block[3], thread[3];
};

struct Launch {
    Entry entry;
    void** arguments;
    Parameters parameters;
    unsigned threads;
    uint64_t blocks;
    std::vector<uint32_t> thread_order, block_order;  // empty for forward
    std::atomic<uint64_t> next_block{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    Failure* failure;
};

struct Warp;
typedef void (*Operation)(Warp&, uint32_t lanes);  // done by the last lane to come, for all

struct Slot {  // what a lane brings to an operation of its warp, and takes from it
    alignas(16) unsigned char in[48];
    alignas(16) unsigned char out[16];
    Operation operation;
    uint32_t mask;
    int source;
    Where where;
    struct Fiber* fiber;
};

struct Warp {
    uint32_t existing, exited, arrived;
    Slot slots[LANES];
};

struct AsyncCopy {
    void* target;
    const void* source;
    int bytes, source_bytes, age;  // age: how many groups have been committed since
};

struct Fiber : Thread {
    enum State { RUNNING, AT_WARP, AT_BLOCK };
    void* stack_pointer;
    unsigned rank, stack;
    State state;
    Where where;  // it waits
    Warp* warp;
    std::vector<AsyncCopy> copies;

    Slot& slot() { return warp->slots[lane]; }
};

// Shared arrays lie between guard pages, each in a region of its own, flush with the page behind it.
struct SharedRegion {
    char* memory = nullptr;
    const void* tag = nullptr;
    size_t bytes = 0, align = 1;

    char* end() const { return memory + MAX_SHARED; }
    char* begin() const { return reinterpret_cast<char*>(uintptr_t(end() - bytes) & -align); }
    void* take(const void* tag, size_t bytes, size_t align);
    bool overrun() const;
};

class Worker {
  public:
    Worker();
    ~Worker();
    static Worker& mine();  // of the calling thread

    void run(Launch& launch);
    int block_barrier(Vote vote, bool predicate, Where where);
    void warp_operation(uint32_t mask, Operation operation, Where where);
    void* shared_array(const void* tag, size_t bytes, size_t align, Where where);
    void* dynamic_shared(size_t align, Where where);
    void check_shared(const void* address, size_t bytes, const char* what, Where where);
    void report(Where where, const void* address, const char* text);
    [[noreturn]] void fail(Where where, const void* address, const char* text);
    bool owns_stack(const void* address) const;
    const SharedRegion* shared_near(const void* address) const;

  private:
    static void fiber_main();
    void run_block(uint64_t number);
    void start_fiber(unsigned number);
    void give_stack(Fiber& fiber);
    void switch_to(Fiber* from, Fiber* to, bool forever = false);
    Fiber* next_ready();
    void wait(Fiber& fiber);
    void make_ready(Fiber* fiber, Fiber* running);
    void finish_barrier(Fiber* running);
    void finish_operation(Warp& warp, uint32_t lanes, Fiber* running);
    void exit(Fiber& fiber);
    void check_overruns();
    [[noreturn]] void stalled();
    unsigned thread_at(unsigned position) const;
    char* stack_bottom(unsigned stack) const { return stacks_ + STACK * stack; }

    Launch* launch_ = nullptr;
    Block block_;
    Fiber fibers_[MAX_THREADS];
    Warp warps_[MAX_THREADS / LANES];
    Fiber* ready_[MAX_THREADS];  // a ring
    unsigned ready_begin_, ready_end_, started_, living_;

    struct Barrier {
        unsigned arrived, count;
        bool all, any;
        Vote vote;
        Where where;
        int result;
    } barrier_;

    char* stacks_;
    unsigned stacks_used_, stacks_guarded_ = 0;
    std::vector<unsigned> free_stacks_;
    void* host_stack_pointer_;
    const void* host_stack_ = nullptr;  // for AddressSanitizer
    size_t host_stack_bytes_ = 0;
    char signal_stack_[1 << 16];  // a stack that is full cannot run the handler of its fault

    std::deque<SharedRegion> shared_;  // the first is the dynamic one
    size_t shared_used_;               // regions in this block
    size_t static_bytes_;
};

void watch_faults();
void describe_address(const void* address, char* text, size_t size);

}  // namespace emu

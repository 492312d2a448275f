// A worker is a thread of the host that runs blocks, one at a time: each CUDA thread of a block is a fiber.
#pragma once
#include <csignal>

#include <atomic>
#include <mutex>
#include <vector>

#include "fiber.h"
#include "races.h"

namespace emu {

struct Parameters {  // of a launch, as the host gives them
    unsigned grid[3], block[3];
    unsigned dynamic_shared, max_shared;
    int workers, order;  // order: 0 forward, 1 reverse, others are seeds
};

struct Failure {  // what the host is told of the first error
    char text[512], file[256];
    int line;
    const void *instruction, *other;  // where the line is not known; and of another that `text` ends with
    unsigned block[3], thread[3];
};

struct Place {  // of an error: a line or an instruction
    Where where;
    const void *instruction = nullptr, *other = nullptr;
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

// A shared array, in a region of its own, flush with the guard pages behind it.
struct SharedRegion {
    char* memory;
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
    static Worker& mine() { return mine_ ? *mine_ : create(); }  // of the calling thread

    void run(Launch& launch);
    int block_barrier(Vote vote, bool predicate, Where where);
    void warp_operation(uint32_t mask, Operation operation, Where where);
    void* shared_array(const void* tag, size_t bytes, size_t align, Where where);
    void* dynamic_shared(size_t align, Where where);
    void check_shared(const void* address, size_t bytes, const char* what, Where where);
    void report(const Place& place, const char* text);
    [[noreturn]] void fail(const Place& place, const char* text);
    bool owns_stack(const void* address) const;
    const SharedRegion* shared_near(const void* address) const;
    void touch(const void* address, size_t bytes, bool write, const void* instruction);

  private:
    static Worker& create();
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

    static EMU_THREAD_LOCAL Worker* mine_;
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

    char* arena_;                          // the regions, with guard pages between them
    SharedRegion shared_[SHARED_REGIONS];  // the first is the dynamic one
    size_t shared_used_;                   // regions in this block
    size_t static_bytes_;
    Races races_;
};

// Whole pages, for as little as is touched of them, and with guard pages on both sides; std::bad_alloc.
char* pages(size_t bytes, int protection);
char* guarded_pages(size_t bytes);

// The running thread reads or writes memory: what the compiler's hooks say for what is no kernel's code.
void touch(const void* address, size_t bytes, bool write, const void* instruction);

void watch_faults();
void describe_address(const void* address, char* text, size_t size);

}  // namespace emu

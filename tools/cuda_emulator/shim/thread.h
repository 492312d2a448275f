// What a CUDA thread knows of itself, and what it asks of the runtime: barriers, shared memory, an end.
#pragma once
#include "types.h"

#pragma GCC visibility push(default)  // the runtime has them
namespace emu {

// A place in the kernel's source. As a default argument it is the caller's.
struct Where {
    const char* file;
    int line;
    static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

struct Thread {
    uint3 index;
    unsigned lane;
};

struct Block {
    uint3 index;
    dim3 size, grid;
};

// initial-exec: no call a look at threadIdx. The runtime's library is loaded before any kernel's.
#define EMU_THREAD_LOCAL thread_local __attribute__((tls_model("initial-exec")))
extern EMU_THREAD_LOCAL Thread* thread;
extern EMU_THREAD_LOCAL Block* block;

enum class Vote { NONE, COUNT, ALL, ANY };
int block_barrier(Vote vote, bool predicate, Where where);

// The same array for all threads of a block that have the same tag; full of NaNs for the first of them.
void* shared_array(const void* tag, size_t bytes, size_t align, Where where);
void* dynamic_shared(size_t align, Where where);

template <class T, class Tag> T& shared(Tag, size_t align, Where where = Where::here()) {
    static const char tag = 0;  // a variable for each declaration of each instance of a template
    return *static_cast<T*>(shared_array(&tag, sizeof(T), align > alignof(T) ? align : alignof(T), where));
}

[[noreturn]] void fail(Where where, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emu
#pragma GCC visibility pop

#define threadIdx (::emu::thread->index)
#define blockIdx (::emu::block->index)
#define blockDim (::emu::block->size)
#define gridDim (::emu::block->grid)
static constexpr int warpSize = 32;

#define EMU_WHERE ::emu::Where where = ::emu::Where::here()

inline void __syncthreads(EMU_WHERE) { emu::block_barrier(emu::Vote::NONE, false, where); }
inline int __syncthreads_count(int p, EMU_WHERE) { return emu::block_barrier(emu::Vote::COUNT, p, where); }
inline int __syncthreads_and(int p, EMU_WHERE) { return emu::block_barrier(emu::Vote::ALL, p, where); }
inline int __syncthreads_or(int p, EMU_WHERE) { return emu::block_barrier(emu::Vote::ANY, p, where); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __threadfence(); }
[[noreturn]] inline void __trap(EMU_WHERE) { emu::fail(where, "__trap()"); }

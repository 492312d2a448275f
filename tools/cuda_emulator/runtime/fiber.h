// A CUDA thread as a fiber, and what its warp shares.
#pragma once
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
constexpr size_t SHARED_REGIONS = 32, SHARED_STRIDE = MAX_SHARED + GUARD;
constexpr size_t STATIC_SHARED = 48 << 10, DYNAMIC_ALIGN = 16;

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
    uint32_t epoch;  // grows with each operation
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

}  // namespace emu

// Runs the threads of a block as fibers: each until it must wait, in the order that the launch asks for.
#include <cstdio>
#include <memory>

#include <pthread.h>
#include <sys/mman.h>

#include "worker.h"

namespace emu {

EMU_THREAD_LOCAL Thread* thread;
EMU_THREAD_LOCAL Block* block;

EMU_THREAD_LOCAL Worker* Worker::mine_;

Worker& Worker::create() {
    static thread_local std::unique_ptr<Worker> owner;  // on the heap: static thread-local memory is scarce
    owner.reset(mine_ = new Worker);
    return *mine_;
}

Worker::Worker() {
    stacks_ = pages(STACK * MAX_THREADS, PROT_READ | PROT_WRITE);
    arena_ = guarded_pages(SHARED_REGIONS * SHARED_STRIDE);
    for (size_t i = 0; i < SHARED_REGIONS; i++) {
        shared_[i].memory = arena_ + i * SHARED_STRIDE;
        mprotect(shared_[i].memory + MAX_SHARED, GUARD, PROT_NONE);
    }
    pthread_attr_t attributes;
    void* bottom;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &host_stack_bytes_);
    pthread_attr_destroy(&attributes);
    host_stack_ = bottom;
}

Worker::~Worker() {
    munmap(stacks_, STACK * MAX_THREADS);
    munmap(arena_ - GUARD, SHARED_REGIONS * SHARED_STRIDE + 2 * GUARD);
}

void Worker::run(Launch& launch) {
    watch_faults();
    stack_t own = {}, others;
    own.ss_sp = signal_stack_, own.ss_size = sizeof signal_stack_;
    sigaltstack(&own, &others);
    launch_ = &launch;
    const Parameters& p = launch.parameters;
    block_.size = dim3(p.block[0], p.block[1], p.block[2]);
    block_.grid = dim3(p.grid[0], p.grid[1], p.grid[2]);
    for (uint64_t i; !launch.failed && (i = launch.next_block++) < launch.blocks;)
        run_block(launch.block_order.empty() ? i : launch.block_order[i]);
    block = nullptr, thread = nullptr;
    sigaltstack(&others, nullptr);
}

void Worker::run_block(uint64_t number) {
    const unsigned* grid = launch_->parameters.grid;
    block_.index = {unsigned(number % grid[0]), unsigned(number / grid[0] % grid[1]),
                    unsigned(number / grid[0] / grid[1])};
    block = &block_;
    const unsigned threads = launch_->threads;
    for (unsigned first = 0; first < threads; first += LANES) {
        const unsigned lanes = threads - first < LANES ? threads - first : LANES;
        Warp& warp = warps_[first / LANES];
        warp.existing = ~0u >> (LANES - lanes);
        warp.exited = warp.arrived = 0;
    }
    barrier_ = {0, 0, true, false, Vote::NONE, {}, 0};
    races_.next_block();
    ready_begin_ = ready_end_ = 0;
    living_ = threads;
    free_stacks_.clear();
    stacks_used_ = 0;
    shared_used_ = 1, static_bytes_ = 0;
    if (launch_->parameters.dynamic_shared)
        shared_[0].take(nullptr, launch_->parameters.dynamic_shared, DYNAMIC_ALIGN);
    else shared_[0].bytes = 0;

    started_ = 0;
    Fiber* fiber = next_ready();
    switch_to(nullptr, fiber);
    if (!launch_->failed) check_overruns();
}

// Which thread is started, or is released from a barrier, at a position of the order.
unsigned Worker::thread_at(unsigned position) const {
    return launch_->thread_order.empty() ? position : launch_->thread_order[position];
}

void Worker::start_fiber(unsigned number) {
    const unsigned* size = launch_->parameters.block;
    Fiber& fiber = fibers_[number];
    fiber.index = {number % size[0], number / size[0] % size[1], number / size[0] / size[1]};
    fiber.rank = number;
    fiber.lane = number % LANES;
    fiber.warp = &warps_[number / LANES];
    fiber.state = Fiber::RUNNING;
    fiber.copies.clear();
    fiber.slot().fiber = &fiber;
}

void Worker::give_stack(Fiber& fiber) {
    if (free_stacks_.empty()) free_stacks_.push_back(stacks_used_++);
    fiber.stack = free_stacks_.back();
    free_stacks_.pop_back();
    for (; stacks_guarded_ <= fiber.stack; stacks_guarded_++)
        mprotect(stack_bottom(stacks_guarded_), PAGE, PROT_NONE);  // an overflow faults
    // Different offsets: else the frames of all fibers would share a few sets of the cache.
    char* top = stack_bottom(fiber.stack) + STACK - fiber.stack * 5 % 32 * 128;
    fiber.stack_pointer = fresh_stack(top, fiber_main);
}

void Worker::switch_to(Fiber* from, Fiber* to, bool forever) {  // null: the scheduler's own stack
    static thread_local void* fake_stack;
    const void* bottom = to ? stack_bottom(to->stack) : host_stack_;
    __sanitizer_start_switch_fiber(forever ? nullptr : &fake_stack, bottom, to ? STACK : host_stack_bytes_);
    if (to) thread = to;
    emu_switch(from ? &from->stack_pointer : &host_stack_pointer_,
               to ? to->stack_pointer : host_stack_pointer_);
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}

void Worker::fiber_main() {
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    Worker& worker = mine();
    worker.launch_->entry(worker.launch_->arguments);
    Fiber& fiber = *static_cast<Fiber*>(thread);
    worker.exit(fiber);
    Fiber* next = worker.next_ready();
    if (!next && worker.living_) worker.stalled();
    worker.free_stacks_.push_back(fiber.stack);
    worker.switch_to(&fiber, next, true);
    __builtin_unreachable();
}

Fiber* Worker::next_ready() {
    if (ready_begin_ != ready_end_) return ready_[ready_begin_++ % MAX_THREADS];
    if (started_ == launch_->threads) return nullptr;
    Fiber& fiber = fibers_[thread_at(started_++)];
    start_fiber(&fiber - fibers_);
    give_stack(fiber);
    return &fiber;
}

void Worker::wait(Fiber& fiber) {
    Fiber* next = next_ready();
    if (!next) stalled();
    switch_to(&fiber, next);
}

void Worker::make_ready(Fiber* fiber, Fiber* running) {
    fiber->state = Fiber::RUNNING;
    if (fiber != running) ready_[ready_end_++ % MAX_THREADS] = fiber;
}

int Worker::block_barrier(Vote vote, bool predicate, Where where) {
    Fiber& fiber = *static_cast<Fiber*>(thread);
    if (barrier_.arrived && (barrier_.where.line != where.line || barrier_.where.file != where.file))
        emu::fail(where, "divergent __syncthreads: other threads of the block wait at %s:%d",
                  barrier_.where.file, barrier_.where.line);
    barrier_.where = where, barrier_.vote = vote;
    barrier_.count += predicate, barrier_.all &= predicate, barrier_.any |= predicate;
    barrier_.arrived++;
    fiber.state = Fiber::AT_BLOCK, fiber.where = where;
    if (barrier_.arrived == living_) finish_barrier(&fiber);
    else wait(fiber);
    return barrier_.result;
}

void Worker::finish_barrier(Fiber* running) {
    const int result = barrier_.vote == Vote::COUNT ? barrier_.count
                       : barrier_.vote == Vote::ALL ? barrier_.all
                                                    : barrier_.any;
    barrier_ = {0, 0, true, false, Vote::NONE, {}, result};
    races_.next_epoch();
    for (unsigned i = 0; i < launch_->threads; i++) {
        Fiber& fiber = fibers_[thread_at(i)];
        if (fiber.state == Fiber::AT_BLOCK) make_ready(&fiber, running);
    }
}

void Worker::exit(Fiber& fiber) {
    if (!fiber.copies.empty()) emu::fail({}, "the thread ended before asynchronous copies of its own");
    living_--;
    fiber.state = Fiber::RUNNING;
    Warp& warp = *fiber.warp;
    warp.exited |= 1u << fiber.lane;
    for (uint32_t left = warp.arrived; left;) {  // who waits for this thread alone, waits no longer
        const uint32_t mask = warp.slots[__builtin_ctz(left)].mask, lanes = mask & ~warp.exited;
        left &= left - 1;
        if ((warp.arrived & lanes) == lanes) finish_operation(warp, lanes, nullptr), left &= ~lanes;
    }
    if (barrier_.arrived && barrier_.arrived == living_) finish_barrier(nullptr);
}

void Worker::stalled() {
    char text[400];
    size_t used = snprintf(text, sizeof text, "no thread can go on; %u of %u have ended",
                           launch_->threads - living_, launch_->threads);
    const Fiber* last = nullptr;
    for (unsigned i = 0; i < started_ && used < sizeof text; i++) {
        const Fiber& fiber = fibers_[thread_at(i)];
        if (fiber.state == Fiber::RUNNING) continue;
        if (last && last->where.line == fiber.where.line && last->state == fiber.state) continue;
        last = &fiber;
        used += snprintf(
            text + used, sizeof text - used, "; thread %u and others wait in %s at line %d", fiber.rank,
            fiber.state == Fiber::AT_BLOCK ? "__syncthreads" : "an operation of the warp", fiber.where.line);
    }
    fail({last ? last->where : Where{}}, text);
}

int block_barrier(Vote vote, bool predicate, Where where) {
    return Worker::mine().block_barrier(vote, predicate, where);
}

}  // namespace emu

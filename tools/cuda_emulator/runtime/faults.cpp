// From a mistake of a kernel to an error of its launch: reports, and the signal of a guard page.
#include <csignal>
#include <cstdarg>
#include <cstdio>

#include "worker.h"

namespace emu {

void Worker::report(const Place& place, const char* text) {
    std::lock_guard<std::mutex> lock(launch_->mutex);
    if (launch_->failed) return;
    Failure& failure = *launch_->failure;
    snprintf(failure.text, sizeof failure.text, "%s", text);
    snprintf(failure.file, sizeof failure.file, "%s", place.where.file ? place.where.file : "");
    failure.line = place.where.line;
    failure.instruction = place.instruction, failure.other = place.other;
    memcpy(failure.block, &block->index, sizeof failure.block);
    memcpy(failure.thread, &thread->index, sizeof failure.thread);
    launch_->failed = true;
}

void Worker::fail(const Place& place, const char* text) {
    report(place, text);
    switch_to(static_cast<Fiber*>(thread), nullptr);
    __builtin_unreachable();
}

void fail(Where where, const char* format, ...) {
    char text[sizeof Failure::text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    Worker::mine().fail({where}, text);
}

bool Worker::owns_stack(const void* address) const {
    return address >= stacks_ && address < stacks_ + STACK * MAX_THREADS;
}

namespace {

struct sigaction previous;

void* instruction(void* context) {
    const auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    return reinterpret_cast<void*>(machine.gregs[REG_RIP]);
#else
    return reinterpret_cast<void*>(machine.pc);
#endif
}

// A fault of a kernel leaves this handler, and the fiber, for good.
void on_fault(int signal, siginfo_t* info, void* context) {
    if (block) {
        char text[200];
        if (Worker::mine().owns_stack(info->si_addr))
            snprintf(text, sizeof text, "the thread's stack is full");
        else describe_address(info->si_addr, text, sizeof text);
        Worker::mine().fail({{}, instruction(context)}, text);
    }
    if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, info, context);
    std::signal(signal, SIG_DFL);
    raise(signal);
}

}  // namespace

void watch_faults() {
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    struct sigaction now, own = {};
    sigaction(SIGSEGV, nullptr, &now);
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_fault) return;
    previous = now;
    own.sa_sigaction = on_fault;
    own.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &own, nullptr);
}

}  // namespace emu

// Switching between stacks: what a fiber is made of.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else  // as those of AddressSanitizer, which must be told of other stacks and of memory that nobody may touch
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace emu {

// Keeps the stack pointer in *save, and goes on where another stack was left.
extern "C" void emu_switch(void** save, void* stack_pointer);

// The stack pointer of a fresh stack, on which emu_switch calls `main`.
inline void* fresh_stack(char* top, void (*main)()) {
    void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(63));
#if defined(__x86_64__)
    *--sp = nullptr;  // so that the stack is aligned as behind a call
    *--sp = reinterpret_cast<void*>(main);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
#elif defined(__aarch64__)
    for (int i = 0; i < 20; i++) *--sp = nullptr;
    sp[11] = reinterpret_cast<void*>(main);
#else
#error "the emulator runs on x86-64 and arm64"
#endif
    return sp;
}

}  // namespace emu

// Finds accesses that no barrier orders, whatever the order of threads made of them.
//
// The compiler's ThreadSanitizer pass calls the functions at the end for each access; its library is not
// used. Two accesses of a byte, one of them a write, by two threads of a block are ordered if a barrier of
// the block came between, or, within a warp, any operation of the warp: of partial masks that is more than is
// true.
#include <algorithm>
#include <cstdio>

#include <sys/mman.h>

#include "worker.h"

namespace emu {

Races::Races() {
    bytes_ =
        reinterpret_cast<Byte*>(pages(SHARED_REGIONS * MAX_SHARED * sizeof(Byte), PROT_READ | PROT_WRITE));
}

Races::~Races() { munmap(bytes_, SHARED_REGIONS * MAX_SHARED * sizeof(Byte)); }

bool Races::ordered(const Access& before, const Fiber& now) const {
    if (before.epoch != epoch_ || (before.by == Access::ONE && before.thread == now.rank)) return true;
    if (before.by == Access::SEVERAL_WARPS || before.thread / LANES != now.rank / LANES) return false;
    return before.warp_epoch != now.warp->epoch;
}

// Of several readers, what is needed to tell whether a write comes too early.
void Races::note_read(Access& read, const Access& now) const {
    if (read.epoch != now.epoch) read = now;
    else if (read.by == Access::SEVERAL_WARPS) return;
    else if (read.thread / LANES != now.thread / LANES) read.by = Access::SEVERAL_WARPS;
    else if (read.warp_epoch != now.warp_epoch) read = now;
    else if (read.thread != now.thread) read.by = Access::LANES_OF_A_WARP;
}

void Races::touch_shared(size_t offset, size_t bytes, bool write, const Fiber& fiber,
                         const void* instruction) {
    const Access now = {instruction, epoch_, fiber.warp->epoch, uint16_t(fiber.rank), Access::ONE};
    for (Byte* byte = bytes_ + offset; byte < bytes_ + offset + bytes; byte++) {
        const bool after_write = ordered(byte->written, fiber);
        if (!after_write || (write && !ordered(byte->read, fiber))) {
            const Access& before = after_write ? byte->read : byte->written;
            char text[160];
            snprintf(text, sizeof text, "%s shared memory with no barrier since thread %u%s %s it at",
                     write ? "writes" : "reads", before.thread, before.by == Access::ONE ? "" : " and others",
                     after_write ? "read" : "wrote");
            Worker::mine().fail({{}, instruction, before.instruction}, text);
        }
        if (write) byte->written = now;
        else note_read(byte->read, now);
    }
}

// In memory of the card only what a thread reads of another one's writes is looked at: several that write the
// same are often meant. A write is forgotten when another one needs its entry.
void Races::touch_global(uintptr_t address, size_t bytes, bool write, const Fiber& fiber,
                         const void* instruction) {
    const Access now = {instruction, epoch_, fiber.warp->epoch, uint16_t(fiber.rank), Access::ONE};
    for (uintptr_t word = address / WORD; word <= (address + bytes - 1) / WORD; word++) {
        Write& entry = writes_[word % WRITES];
        const uintptr_t first = std::max(address, word * WORD) % WORD;
        const uintptr_t last = std::min(address + bytes - 1, word * WORD + WORD - 1) % WORD;
        const uint8_t mask = (2u << last) - (1u << first);
        if (write) {
            written_[word % WRITES / 64] |= uint64_t(1) << word % 64;
            const Access& before = entry.access;
            const bool goes_on = entry.word == word && before.thread == now.thread &&
                                 before.epoch == now.epoch && before.warp_epoch == now.warp_epoch;
            if (!goes_on) entry.mask = 0;
            entry.word = word, entry.mask |= mask;
            entry.access = now;
        } else if (entry.word == word && entry.mask & mask && !ordered(entry.access, fiber)) {
            char text[160];
            snprintf(text, sizeof text, "reads memory with no barrier since thread %u wrote it at",
                     entry.access.thread);
            Worker::mine().fail({{}, instruction, entry.access.instruction}, text);
        }
    }
}

inline void Worker::touch(const void* address, size_t bytes, bool write, const void* instruction) {
    const size_t offset = static_cast<const char*>(address) - arena_, region = offset / SHARED_STRIDE;
    const uintptr_t first = reinterpret_cast<uintptr_t>(address);
    if (region < SHARED_REGIONS) {
        if (offset % SHARED_STRIDE + bytes > MAX_SHARED) return;
        const size_t byte = region * MAX_SHARED + offset % SHARED_STRIDE;
        races_.touch_shared(byte, bytes, write, *static_cast<Fiber*>(thread), instruction);
    } else if ((write || races_.maybe_written(first, bytes)) && !owns_stack(address)) {
        races_.touch_global(first, bytes, write, *static_cast<Fiber*>(thread), instruction);
    }
}

void touch(const void* address, size_t bytes, bool write, const void* instruction) {
    Worker::mine().touch(address, bytes, write, instruction);
}

}  // namespace emu

#define EMU_HOOK(NAME, BYTES, WRITE)                                                   \
    extern "C" void __tsan_##NAME(void* address) {                                     \
        emu::Worker::mine().touch(address, BYTES, WRITE, __builtin_return_address(0)); \
    }
#define EMU_HOOKS(BYTES)                          \
    EMU_HOOK(read##BYTES, BYTES, false)           \
    EMU_HOOK(write##BYTES, BYTES, true)           \
    EMU_HOOK(unaligned_read##BYTES, BYTES, false) \
    EMU_HOOK(unaligned_write##BYTES, BYTES, true)
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)

extern "C" void __tsan_read_range(void* address, size_t bytes) {
    emu::Worker::mine().touch(address, bytes, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* address, size_t bytes) {
    emu::Worker::mine().touch(address, bytes, true, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
extern "C" void __tsan_atomic_signal_fence(int) {}

// What finds accesses that no barrier orders: see races.cpp.
#pragma once
#include "fiber.h"

namespace emu {

// Who touched each byte of shared memory last, and wrote some of the card's, so that what no barrier orders
// is found.
class Races {
  public:
    Races();
    ~Races();
    void next_epoch() { epoch_++; }
    void next_block() {
        epoch_++;
        memset(written_, 0, sizeof written_);
    }
    bool maybe_written(uintptr_t address, size_t bytes) const {  // in this block; or others of these bits
        for (uintptr_t word = address / WORD; word <= (address + bytes - 1) / WORD; word++)
            if (written_[word % WRITES / 64] >> word % 64 & 1) return true;
        return false;
    }
    void touch_shared(size_t offset, size_t bytes, bool write, const Fiber& fiber, const void* instruction);
    void touch_global(uintptr_t address, size_t bytes, bool write, const Fiber& fiber,
                      const void* instruction);

  private:
    struct Access {
        const void* instruction;
        uint32_t epoch, warp_epoch;  // of the block, and of the thread's warp
        uint16_t thread;
        enum : uint16_t { ONE, LANES_OF_A_WARP, SEVERAL_WARPS } by;
    };
    struct Byte {
        Access read, written;
    };
    static constexpr size_t WRITES = 1 << 12, WORD = 4;
    struct Write {  // of some bytes of a word of the card's memory
        uintptr_t word;
        Access access;
        uint8_t mask;
    };
    bool ordered(const Access& before, const Fiber& now) const;
    void note_read(Access& read, const Access& now) const;

    Byte* bytes_;
    Write writes_[WRITES] = {};
    uint64_t written_[WRITES / 64];  // small enough to be looked at in each read
    uint32_t epoch_ = 1;
};

}  // namespace emu

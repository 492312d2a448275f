// IQ1_S: superblocks of 256 values, eight at a time from a code book of 2048.
//
// { f16 d; u8 q[32]; u16 qh[8] }: each qh belongs to 32 values: four times three bits, the tops of their
// indices, a scale of three bits, and the sign of a delta of 1/8. A weight is d * (2 * scale + 1) * (entry +
// delta).
#pragma once
#include "code_book.cuh"
#include "units.cuh"

// Entries are -1, 0 and 1: as bytes 8 * (entry + 1), and 2 more where the delta is positive, they are whole
// numbers, and 8 * (entry + delta) = byte - 9 (IQ1_M has the same).
constexpr float IQ1_OFFSET = 9.0f;

DEVICE int iq1_bytes(uint32_t entry, bool negative) {
    const uint32_t above_0 = (entry ^ 0x80808080) - 0x7f7f7f7f;
    return above_0 << 3 | (negative ? 0 : 0x02020202);
}

DEVICE void iq1_values(int index, bool negative, int& low, int& high) {
    const uint2 entry = entry_of_8(index);
    low = iq1_bytes(entry.x, negative);
    high = iq1_bytes(entry.y, negative);
}

struct IQ1_S : UnitsAreGroups<IQ1_S> {
    static constexpr int VALUES = 256, BYTES = 50, PER_SCALE = 32;
    static constexpr bool OFFSETS = true;

    struct Unit {
        uint32_t q, tops, d;
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 8 * BYTES;
        return {load_2x16(block + 2 + u % 8 * 4), load_16(block + 34 + u % 8 * 2), load_16(block)};
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<IQ1_S>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int index = ((unit.q >> (8 * i)) & 0xff) | ((unit.tops >> (3 * i)) & 7) << 8;
            iq1_values(index, unit.tops & 0x8000, to.q[2 * i], to.q[2 * i + 1]);
        }
        to.scale[0] = half_of(unit.d) * float(2 * ((unit.tops >> 12) & 7) + 1) * 0.125f;
        to.offset[0] = IQ1_OFFSET * to.scale[0];
    }
};

// TQ1_0: superblocks of 256 ternary digits less 1, one half-float scale.
//
// { u8 q[48]; u8 qh[4]; f16 d }: a byte has five digits, as a fraction of 256: times 3, the first is what
// exceeds a byte, and what remains goes on. The first digits of q[0:32] are values 0-31, the second ones
// 32-63...; q[32:48] follow alike (values 160-239), and then qh, with four digits.
#pragma once
#include "units.cuh"

struct TQ1_0 : UnitsAreGroups<TQ1_0> {
    static constexpr int VALUES = 256, BYTES = 54, PER_SCALE = 32;
    static constexpr bool OFFSETS = true;

    struct Unit {
        uint32_t words[8], d;
    };

    // Which word of a block has the digits of values 4 i and on, of group g, and which digit they are.
    static DEVICE int word(int g, int i) {
        if (g < 5) return i;
        return g == 7 && i >= 4 ? 12 : 8 + i % 4;
    }
    static DEVICE int digit(int g, int i) {
        if (g < 5) return g;
        return g == 7 && i >= 4 ? i - 4 : (g - 5) * 2 + i / 4;
    }

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 8 * BYTES;
        Unit unit;
#pragma unroll
        for (int i = 0; i < 8; i++) unit.words[i] = load_2x16(block + 4 * word(u % 8, i));
        unit.d = load_16(block + 52);
        return unit;
    }

    // The digits of two bytes, which are in a half of the word each; 3 ** digit is `power`.
    static DEVICE uint32_t digits(uint32_t bytes, uint32_t power) {
        return ((((bytes & 0x00ff00ff) * power) & 0x00ff00ff) * 3 >> 8) & 0x00030003;
    }

    static DEVICE void unpack(const Unit& unit, int u, Unpacked<TQ1_0>& to) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t power = 1;
            for (int n = digit(u % 8, i); n > 0; n--) power *= 3;
            to.q[i] = digits(unit.words[i], power) | digits(unit.words[i] >> 8, power) << 8;
        }
        to.scale[0] = to.offset[0] = half_of(unit.d);
    }
};

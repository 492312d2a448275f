// IQ3_S: superblocks of 256 values, four at a time from a code book of 512.
//
// { f16 d; u8 q[64]; u8 qh[8]; u8 signs[32]; u8 scales[4] }: bit i of qh is the top of index q[i]; each byte
// of signs belongs to eight values, nibble i of scales to values 32 i and on. A weight is d * (2 * scale + 1)
// * sign * entry.
#pragma once
#include "code_book.cuh"
#include "units.cuh"

struct IQ3_S : UnitsAreGroups<IQ3_S> {
    static constexpr int VALUES = 256, BYTES = 110, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    struct Unit {
        uint32_t q[4], tops, signs, scale, d;  // two indices a q
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 8 * BYTES;
        const int g = u % 8;
        const uint8_t* q = block + 2 + 8 * g;
        return {{load_16(q), load_16(q + 2), load_16(q + 4), load_16(q + 6)}, __ldg(block + 66 + g),
                load_2x16(block + 74 + 4 * g), uint32_t(__ldg(block + 106 + g / 2)) >> (g % 2 * 4) & 15,
                load_16(block)};
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<IQ3_S>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t tops = unit.tops >> (2 * i);
            const int first = (unit.q[i] & 0xff) | (tops & 1) << 8, second = unit.q[i] >> 8 | (tops & 2) << 7;
            signed_entries(entries_of_4(first, second), unit.signs >> (8 * i), to.q[2 * i], to.q[2 * i + 1]);
        }
        to.scale[0] = half_of(unit.d) * float(2 * unit.scale + 1);
    }
};

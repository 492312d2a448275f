// IQ3_XXS: superblocks of 256 values, four at a time from a code book of 256.
//
// { f16 d; u8 q[64]; u32 s[8] }: each s belongs to 32 values: four times seven bits of signs and, on top, a
// scale of 4 bits. A weight is d / 2 * (scale + 1/2) * sign * entry.
#pragma once
#include "code_book.cuh"
#include "units.cuh"

struct IQ3_XXS : UnitsAreGroups<IQ3_XXS> {
    static constexpr int VALUES = 256, BYTES = 98, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    struct Unit {
        uint32_t q[4], s, d;  // two indices a q
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t *block = row + u / 8 * BYTES, *q = block + 2 + u % 8 * 8;
        return {{load_16(q), load_16(q + 2), load_16(q + 4), load_16(q + 6)},
                load_2x16(block + 66 + u % 8 * 4), load_16(block)};
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<IQ3_XXS>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint2 entries = entries_of_4(unit.q[i] & 0xff, unit.q[i] >> 8);
            signed_entries(entries, even_signs(unit.s >> (7 * i)), to.q[2 * i], to.q[2 * i + 1]);
        }
        to.scale[0] = half_of(unit.d) * (float(unit.s >> 28) + 0.5f) * 0.5f;
    }
};

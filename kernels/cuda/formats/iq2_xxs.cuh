// IQ2_XXS: superblocks of 256 values, eight at a time from a code book of 256.
//
// { f16 d; { u8 index[4]; u32 s } [8] }: each 32 values have four indices; s holds four times seven bits of
// signs and, on top, a scale of 4 bits. A weight is d / 4 * (scale + 1/2) * sign * entry.
#pragma once
#include "code_book.cuh"
#include "units.cuh"

struct IQ2_XXS : UnitsAreGroups<IQ2_XXS> {
    static constexpr int VALUES = 256, BYTES = 66, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    struct Unit {
        uint32_t indices, s, d;
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t *block = row + u / 8 * BYTES, *p = block + 2 + u % 8 * 8;
        return {load_2x16(p), load_2x16(p + 4), load_16(block)};
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<IQ2_XXS>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint2 entry = entry_of_8((unit.indices >> (8 * i)) & 0xff);
            signed_entries(entry, even_signs(unit.s >> (7 * i)), to.q[2 * i], to.q[2 * i + 1]);
        }
        to.scale[0] = half_of(unit.d) * (float(unit.s >> 28) + 0.5f) * 0.25f;
    }
};

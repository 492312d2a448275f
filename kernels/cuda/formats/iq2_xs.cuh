// IQ2_XS: superblocks of 256 values, eight at a time from a code book of 512.
//
// { f16 d; u16 q[32]; u8 scales[8] }: q is an index of 9 bits and, above, seven bits of signs; nibble i of
// scales belongs to values 16 i and on. A weight is d / 4 * (scale + 1/2) * sign * entry.
#pragma once
#include "code_book.cuh"
#include "units.cuh"

// Of the two halves of a group, from the two nibbles of a byte (IQ2_S has the same).
DEVICE void nibble_scales(float d, uint32_t nibbles, float (&scale)[2]) {
    scale[0] = d * (float(nibbles & 15) + 0.5f) * 0.25f;
    scale[1] = d * (float(nibbles >> 4) + 0.5f) * 0.25f;
}

struct IQ2_XS : UnitsAreGroups<IQ2_XS> {
    static constexpr int VALUES = 256, BYTES = 74, PER_SCALE = 16;
    static constexpr bool OFFSETS = false;

    struct Unit {
        uint32_t q[4], scales, d;
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t *block = row + u / 8 * BYTES, *q = block + 2 + u % 8 * 8;
        return {{load_16(q), load_16(q + 2), load_16(q + 4), load_16(q + 6)}, __ldg(block + 66 + u % 8),
                load_16(block)};
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<IQ2_XS>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t signs = even_signs(unit.q[i] >> 9);
            signed_entries(entry_of_8(unit.q[i] & 511), signs, to.q[2 * i], to.q[2 * i + 1]);
        }
        nibble_scales(half_of(unit.d), unit.scales, to.scale);
    }
};

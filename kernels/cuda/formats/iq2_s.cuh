// IQ2_S: superblocks of 256 values, eight at a time from a code book of 1024.
//
// { f16 d; u8 q[32]; u8 signs[32]; u8 qh[8]; u8 scales[8] }: pair i of qh is the top of index q[i]; each byte
// of signs belongs to eight values, nibble i of scales to values 16 i and on. A weight is d / 4 * (scale +
// 1/2) * sign * entry.
#pragma once
#include "iq2_xs.cuh"

struct IQ2_S : UnitsAreGroups<IQ2_S> {
    static constexpr int VALUES = 256, BYTES = 82, PER_SCALE = 16;
    static constexpr bool OFFSETS = false;

    struct Unit {
        uint32_t q, signs, tops, scales, d;
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 8 * BYTES;
        const int g = u % 8;
        return {load_2x16(block + 2 + 4 * g), load_2x16(block + 34 + 4 * g), __ldg(block + 66 + g),
                __ldg(block + 74 + g), load_16(block)};
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<IQ2_S>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int index = ((unit.q >> (8 * i)) & 0xff) | ((unit.tops >> (2 * i)) & 3) << 8;
            signed_entries(entry_of_8(index), unit.signs >> (8 * i), to.q[2 * i], to.q[2 * i + 1]);
        }
        nibble_scales(half_of(unit.d), unit.scales, to.scale);
    }
};

// IQ4_XS: superblocks of 256 nibbles that index IQ4_NL's table; 8 sub-blocks with 6-bit scales less 32.
//
// { f16 d; u16 tops; u8 scales[4]; u8 q[128] }: sub-block i has its nibbles in q[16 i : 16 i + 16] as in
// Q4_0; its scale is nibble i of scales and, above it, pair i of tops.
#pragma once
#include "iq4_nl.cuh"

struct IQ4_XS : UnitsAreGroups<IQ4_XS> {
    static constexpr int VALUES = 256, BYTES = 136, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    struct Unit {
        uint32_t head[2], q[4];
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 8 * BYTES;
        Unit unit;
        load_64(block, unit.head);
        load_64(block + 8 + u % 8 * 16, unit.q);
        return unit;
    }

    static DEVICE void unpack(const Unit& unit, int u, Unpacked<IQ4_XS>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) iq4_table().look_up(unit.q[i], to.q[i], to.q[4 + i]);
        const uint32_t low = (unit.head[1] >> (u % 8 * 4)) & 15, top = (unit.head[0] >> (16 + u % 8 * 2)) & 3;
        to.scale[0] = half_of(unit.head[0]) * float(int(low | top << 4) - 32);
    }
};

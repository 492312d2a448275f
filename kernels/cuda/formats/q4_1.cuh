// Q4_1: blocks of 32 nibbles, a half-float scale and minimum.
//
// { f16 d, m; u8 q[16] }: d * nibble + m, the nibbles lie as in Q4_0.
#pragma once
#include "units.cuh"

struct Q4_1 : UnitsAreGroups<Q4_1> {
    static constexpr int VALUES = 32, BYTES = 20, PER_SCALE = 32;
    static constexpr bool OFFSETS = true;

    struct Unit {
        uint32_t d_m, q[4];
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        uint32_t words[5];
        load_32(row + u * BYTES, words);
        return {words[0], {words[1], words[2], words[3], words[4]}};
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<Q4_1>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to.q[i] = unit.q[i] & 0x0f0f0f0f;
            to.q[4 + i] = (unit.q[i] >> 4) & 0x0f0f0f0f;
        }
        to.scale[0] = half_of(unit.d_m);
        to.offset[0] = -half_of(unit.d_m >> 16);
    }
};

// Q5_1: blocks of 32 5-bit values, a half-float scale and minimum.
//
// { f16 d, m; u8 qh[4]; u8 q[16] }: d * value + m, the bits lie as in Q5_0.
#pragma once
#include "bits.cuh"
#include "units.cuh"

struct Q5_1 : UnitsAreGroups<Q5_1> {
    static constexpr int VALUES = 32, BYTES = 24, PER_SCALE = 32;
    static constexpr bool OFFSETS = true;

    struct Unit {
        uint32_t words[6];
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        Unit unit;
        load_64(row + u * BYTES, unit.words);
        return unit;
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<Q5_1>& to) {
        const uint32_t fifth = unit.words[1];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t nibbles = unit.words[2 + i];
            to.q[i] = (nibbles & 0x0f0f0f0f) | spread_bits<4>(fifth >> (4 * i));
            to.q[4 + i] = ((nibbles >> 4) & 0x0f0f0f0f) | spread_bits<4>(fifth >> (16 + 4 * i));
        }
        to.scale[0] = half_of(unit.words[0]);
        to.offset[0] = -half_of(unit.words[0] >> 16);
    }
};

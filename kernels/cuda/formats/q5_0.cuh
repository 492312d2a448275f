// Q5_0: blocks of 32 5-bit values less 16, one half-float scale.
//
// { f16 d; u8 qh[4]; u8 q[16] }: the nibbles of q lie as in Q4_0; bit i of qh is the fifth bit of value i.
// Bits are put on top of their byte, whose sign is then turned: that makes 8 times the value.
#pragma once
#include "bits.cuh"
#include "units.cuh"

struct Q5_0 : UnitsAreGroups<Q5_0> {
    static constexpr int VALUES = 32, BYTES = 22, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    using Unit = Words<6>;

    static DEVICE Unit load(const uint8_t* row, int u) { return Unit(row + u * BYTES); }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<Q5_0>& to) {
        const uint32_t fifth = unit.at(2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t nibbles = unit.at(6 + 4 * i);
            const uint32_t low = fifth >> (4 * i), high = fifth >> (16 + 4 * i);
            to.q[i] = ((nibbles << 3) & 0x78787878) | (spread_bits<7>(low) ^ 0x80808080);
            to.q[4 + i] = ((nibbles >> 1) & 0x78787878) | (spread_bits<7>(high) ^ 0x80808080);
        }
        to.scale[0] = half_of(unit.at(0)) * 0.125f;
    }
};

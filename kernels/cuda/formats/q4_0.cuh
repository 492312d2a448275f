// Q4_0: blocks of 32 nibbles less 8, one half-float scale.
//
// { f16 d; u8 q[16] }: q[i] holds values i (low) and i + 16 (high). A nibble is put on top of its byte, whose
// sign is then turned: that makes 16 times the value, with no subtraction.
#pragma once
#include "units.cuh"

struct Q4_0 : UnitsAreGroups<Q4_0> {
    static constexpr int VALUES = 32, BYTES = 18, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    using Unit = Words<5>;

    static DEVICE Unit load(const uint8_t* row, int u) { return Unit(row + u * BYTES); }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<Q4_0>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t nibbles = unit.at(2 + 4 * i);
            to.q[i] = ((nibbles << 4) & 0xf0f0f0f0) ^ 0x80808080;
            to.q[4 + i] = (nibbles & 0xf0f0f0f0) ^ 0x80808080;
        }
        to.scale[0] = half_of(unit.at(0)) * (1.0f / 16.0f);
    }
};

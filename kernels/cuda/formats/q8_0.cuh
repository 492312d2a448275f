// Q8_0: blocks of 32 signed bytes, one half-float scale. { f16 d; i8 q[32] }
#pragma once
#include "units.cuh"

struct Q8_0 : UnitsAreGroups<Q8_0> {
    static constexpr int VALUES = 32, BYTES = 34, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    using Unit = Words<9>;

    static DEVICE Unit load(const uint8_t* row, int u) { return Unit(row + u * BYTES); }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<Q8_0>& to) {
#pragma unroll
        for (int i = 0; i < 8; i++) to.q[i] = unit.at(2 + 4 * i);
        to.scale[0] = half_of(unit.at(0));
    }
};

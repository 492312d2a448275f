// IQ4_NL: blocks of 32 nibbles that index a table, one half-float scale. { f16 d; u8 q[16] } as in Q4_0.
#pragma once
#include "bits.cuh"
#include "units.cuh"

// -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113 (IQ4_XS has the same).
DEVICE Table iq4_table() { return {{0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535}}; }

struct IQ4_NL : UnitsAreGroups<IQ4_NL> {
    static constexpr int VALUES = 32, BYTES = 18, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    using Unit = Words<5>;

    static DEVICE Unit load(const uint8_t* row, int u) { return Unit(row + u * BYTES); }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<IQ4_NL>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) iq4_table().look_up(unit.at(2 + 4 * i), to.q[i], to.q[4 + i]);
        to.scale[0] = half_of(unit.at(0));
    }
};

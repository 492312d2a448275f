// MXFP4: blocks of 32 4-bit floats (E2M1), one power of two (E8M0) as scale. { u8 e; u8 q[16] }
//
// The nibbles of q lie as in Q4_0. The table has twice the floats, to be whole numbers: a weight is
// 2 ** (e - 128) * table[nibble].
#pragma once
#include "bits.cuh"
#include "units.cuh"

struct MXFP4 : UnitsAreGroups<MXFP4> {
    static constexpr int VALUES = 32, BYTES = 17, PER_SCALE = 32;
    static constexpr bool OFFSETS = false;

    using Unit = Words<5>;

    static DEVICE Unit load(const uint8_t* row, int u) { return Unit(row + u * BYTES); }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<MXFP4>& to) {
        // 0 1 2 3, 4 6 8 12, and the same with a minus
        const Table table = {{0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc}};
#pragma unroll
        for (int i = 0; i < 4; i++) table.look_up(unit.at(1 + 4 * i), to.q[i], to.q[4 + i]);
        // The bits of the float; below 2 ** -126 they are a mantissa.
        const int e = unit.at(0) & 0xff;
        to.scale[0] = __int_as_float(max((e - 1) * (1 << 23), (e + 1) << 21));
    }
};

// TQ2_0: superblocks of 256 pairs of bits less 1, one half-float scale. { u8 q[64]; f16 d }: as in Q2_K.
#pragma once
#include "units.cuh"

struct TQ2_0 {
    static constexpr int VALUES = 256, BYTES = 66, PER_SCALE = 16;
    static constexpr int PARTS = 4, STEP = 2;  // a unit: 16 bytes
    static constexpr bool OFFSETS = false;

    struct Unit {
        uint32_t q[4], d;
    };

    static DEVICE int chunk(int u) { return u / 4 * 16 + u % 4 / 2 * 8 + u % 2; }

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 4 * BYTES;
        Unit unit;
#pragma unroll
        for (int i = 0; i < 4; i++) unit.q[i] = load_2x16(block + u % 4 * 16 + 4 * i);
        unit.d = load_16(block + 64);
        return unit;
    }

    // Four values: the pairs that begin at this bit of their bytes, less 1, which borrows from no other byte.
    static DEVICE int four(uint32_t pairs, int pair) {
        return ((((pairs >> pair) & 0x03030303) | 0x80808080) - 0x01010101) ^ 0x80808080;
    }

    static DEVICE void unpack(const Unit& unit, int, Unpacked<TQ2_0>& to) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
#pragma unroll
            for (int i = 0; i < 4; i++) to.q[4 * part + i] = four(unit.q[i], 2 * part);
            to.scale[part] = half_of(unit.d);
        }
    }

    static DEVICE void group(const uint8_t* row, int g, int (&q)[8], float (&scale)[2], float (&offset)[2]) {
        const uint8_t* block = row + g / 8 * BYTES;
#pragma unroll
        for (int i = 0; i < 8; i++) q[i] = four(load_2x16(block + g % 8 / 4 * 32 + 4 * i), g % 4 * 2);
        scale[0] = scale[1] = half_of(load_16(block + 64));
        offset[0] = offset[1] = 0.0f;
    }
};

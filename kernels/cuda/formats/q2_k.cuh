// Q2_K: superblocks of 256 pairs of bits; 16 sub-blocks with 4-bit scales and minima.
//
// { u8 scales[16]; u8 q[64]; f16 d, dmin }: the pairs at bits 0, 2, 4, 6 of q[0:32] are values 0-31, 32-63,
// 64-95, 96-127; those of q[32:64], the other half. A scale is the low nibble of its byte, a minimum the high
// one; a weight is d * scale * pair - dmin * minimum.
#pragma once
#include "units.cuh"

struct Q2_K {
    static constexpr int VALUES = 256, BYTES = 84, PER_SCALE = 16;
    static constexpr int PARTS = 4, STEP = 2;  // a unit: the four sub-blocks of 16 bytes
    static constexpr bool OFFSETS = true;

    struct Unit {
        uint32_t scales[2], q[4], d;
    };

    static DEVICE int chunk(int u) { return u / 4 * 16 + u % 4 / 2 * 8 + u % 2; }

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 4 * BYTES;
        Unit unit;
        load_32(block + u % 4 / 2 * 8, unit.scales);
        load_32(block + 16 + u % 4 * 16, unit.q);
        unit.d = __ldg(reinterpret_cast<const uint32_t*>(block + 80));
        return unit;
    }

    static DEVICE void unpack(const Unit& unit, int u, Unpacked<Q2_K>& to) {
        const uint32_t scales = __byte_perm(unit.scales[0], unit.scales[1], u % 2 ? 0x7531 : 0x6420);
        const float d = half_of(unit.d), dmin = half_of(unit.d >> 16);
#pragma unroll
        for (int part = 0; part < 4; part++) {
#pragma unroll
            for (int i = 0; i < 4; i++) to.q[4 * part + i] = (unit.q[i] >> (2 * part)) & 0x03030303;
            to.scale[part] = d * float((scales >> (8 * part)) & 15);
            to.offset[part] = dmin * float((scales >> (8 * part + 4)) & 15);
        }
    }

    static DEVICE void group(const uint8_t* row, int g, int (&q)[8], float (&scale)[2], float (&offset)[2]) {
        const uint8_t* block = row + g / 8 * BYTES;
        uint32_t pairs[8], d[1];
        load_32(block + 16 + g % 8 / 4 * 32, pairs);
        load_32(block + 80, d);
#pragma unroll
        for (int i = 0; i < 8; i++) q[i] = (pairs[i] >> (g % 4 * 2)) & 0x03030303;
        const uint32_t scales = load_16(block + g % 8 * 2);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            scale[h] = half_of(d[0]) * float((scales >> (8 * h)) & 15);
            offset[h] = half_of(d[0] >> 16) * float((scales >> (8 * h + 4)) & 15);
        }
    }
};

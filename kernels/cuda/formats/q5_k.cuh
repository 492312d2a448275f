// Q5_K: superblocks of 256 5-bit values; 8 sub-blocks with 6-bit scales and minima as in Q4_K.
//
// { f16 d, dmin; u8 scales[12]; u8 qh[32]; u8 q[128] }: the nibbles lie as in Q4_K; bit i of qh[j] is the
// fifth bit of value 32 i + j.
#pragma once
#include "q4_k.cuh"

struct Q5_K {
    static constexpr int VALUES = 256, BYTES = 176, PER_SCALE = 32;
    static constexpr int PARTS = 4, STEP = 1;  // a unit: the two sub-blocks of 32 bytes of q
    static constexpr bool OFFSETS = true;

    struct Unit {
        uint32_t head[4], fifth[8], q[8];
    };

    static DEVICE int chunk(int u) { return PARTS * u; }

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 4 * BYTES;
        Unit unit;
        load_128(block, unit.head);
        load_128(block + 16, unit.fifth);
        load_128(block + 48 + u % 4 * 32, unit.q);
        return unit;
    }

    static DEVICE void unpack(const Unit& unit, int u, Unpacked<Q5_K>& to) {
        const int first = u % 4 * 2;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t fifth = unit.fifth[i] >> first;
            to.q[i] = (unit.q[i] & 0x0f0f0f0f) | ((fifth << 4) & 0x10101010);
            to.q[8 + i] = ((unit.q[i] >> 4) & 0x0f0f0f0f) | ((fifth << 3) & 0x10101010);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) scale_and_minimum(unit.head, first + i, to.scale[i], to.offset[i]);
    }

    static DEVICE void group(const uint8_t* row, int g, int (&q)[8], float (&scale)[2], float (&offset)[2]) {
        const Unit unit = load(row, g / 2);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            q[i] = ((unit.q[i] >> (g % 2 * 4)) & 0x0f0f0f0f) | ((unit.fifth[i] >> (g % 8) << 4) & 0x10101010);
        }
        scale_and_minimum(unit.head, g % 8, scale[0], offset[0]);
        scale[1] = scale[0], offset[1] = offset[0];
    }
};

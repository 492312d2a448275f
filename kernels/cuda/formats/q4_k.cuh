// Q4_K: superblocks of 256 nibbles; 8 sub-blocks with 6-bit scales and minima.
//
// { f16 d, dmin; u8 scales[12]; u8 q[128] }: the 32 bytes at q + 32 j hold sub-blocks 2 j (low) and 2 j + 1
// (high). A weight is d * scale * nibble - dmin * minimum. Scales 0-3 are the low six bits of scales[0:4],
// minima 0-3 those of scales[4:8]; scales 4-7 are the low nibbles of scales[8:12], minima 4-7 the high ones,
// and the free bits of the first eight bytes are their tops.
#pragma once
#include "units.cuh"

// The scale d * ... and the minimum dmin * ... of sub-block i, from the first 16 bytes of a block (also
// Q5_K's).
DEVICE void scale_and_minimum(const uint32_t (&head)[4], int i, float& scale, float& minimum) {
    uint32_t scales = head[1] & 0x3f3f3f3f, minima = head[2] & 0x3f3f3f3f;
    if (i >= 4) {
        scales = (head[3] & 0x0f0f0f0f) | ((head[1] >> 2) & 0x30303030);
        minima = ((head[3] >> 4) & 0x0f0f0f0f) | ((head[2] >> 2) & 0x30303030);
    }
    const int shift = i % 4 * 8;
    scale = half_of(head[0]) * float((scales >> shift) & 0xff);
    minimum = half_of(head[0] >> 16) * float((minima >> shift) & 0xff);
}

struct Q4_K {
    static constexpr int VALUES = 256, BYTES = 144, PER_SCALE = 32;
    static constexpr int PARTS = 4, STEP = 1;  // a unit: the two sub-blocks of 32 bytes
    static constexpr bool OFFSETS = true;

    struct Unit {
        uint32_t head[4], q[8];
    };

    static DEVICE int chunk(int u) { return PARTS * u; }

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 4 * BYTES;
        Unit unit;
        load_128(block, unit.head);
        load_128(block + 16 + u % 4 * 32, unit.q);
        return unit;
    }

    static DEVICE void unpack(const Unit& unit, int u, Unpacked<Q4_K>& to) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            to.q[i] = unit.q[i] & 0x0f0f0f0f;
            to.q[8 + i] = (unit.q[i] >> 4) & 0x0f0f0f0f;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) scale_and_minimum(unit.head, u % 4 * 2 + i, to.scale[i], to.offset[i]);
    }

    static DEVICE void group(const uint8_t* row, int g, int (&q)[8], float (&scale)[2], float (&offset)[2]) {
        const Unit unit = load(row, g / 2);
        const int shift = g % 2 * 4;
#pragma unroll
        for (int i = 0; i < 8; i++) q[i] = (unit.q[i] >> shift) & 0x0f0f0f0f;
        scale_and_minimum(unit.head, g % 8, scale[0], offset[0]);
        scale[1] = scale[0], offset[1] = offset[0];
    }
};

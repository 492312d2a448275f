// Q3_K: superblocks of 256 3-bit values less 4; 16 sub-blocks with 6-bit scales less 32.
//
// { u8 qh[32]; u8 q[64]; u8 scales[12]; f16 d }: the low pairs of bits lie as in Q2_K; bit i of qh[j] is the
// third bit of value 32 i + j. The low nibbles of scales[0:8] belong to scales 0-7, the high ones to scales
// 8-15; the top pair of bits of scale i is pair i / 4 of scales[8 + i % 4]. Bits are put on top of their
// byte, whose sign is then turned: that makes 32 times the value.
#pragma once
#include "units.cuh"

struct Q3_K {
    static constexpr int VALUES = 256, BYTES = 110, PER_SCALE = 16;
    static constexpr int PARTS = 4, STEP = 2;  // a unit: the four sub-blocks of 16 bytes of q
    static constexpr bool OFFSETS = false;

    struct Unit {
        Words<5> third, q;
        Words<4> scales;
        uint32_t d;
    };

    static DEVICE int chunk(int u) { return u / 4 * 16 + u % 4 / 2 * 8 + u % 2; }

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 4 * BYTES;
        return {Words<5>(block + u % 2 * 16), Words<5>(block + 32 + u % 4 * 16), Words<4>(block + 96),
                load_16(block + 108)};
    }

    // Four values: the pairs and the third bits that begin at these bits of their bytes.
    static DEVICE int four(uint32_t pairs, int pair, uint32_t third, int bit) {
        return ((pairs >> pair << 5) & 0x60606060) | (((third >> bit << 7) & 0x80808080) ^ 0x80808080);
    }

    static DEVICE void unpack(const Unit& unit, int u, Unpacked<Q3_K>& to) {
        const int half = u % 4 / 2;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t third = unit.third.at(4 * i) >> (4 * half), q = unit.q.at(4 * i);
#pragma unroll
            for (int part = 0; part < 4; part++) to.q[4 * part + i] = four(q, 2 * part, third, part);
        }
        // The scales of sub-blocks 8 half + 2 part + u % 2, a byte a part.
        const uint32_t low = __byte_perm(unit.scales.at(0), unit.scales.at(4), u % 2 ? 0x7531 : 0x6420);
        const uint32_t top = __byte_perm(unit.scales.at(8), 0, u % 2 ? 0x3131 : 0x2020) >> (4 * half);
        const uint32_t tops = ((top << 4) & 0x00003030) | ((top << 2) & 0x30300000);
        const uint32_t scales = ((low >> (4 * half)) & 0x0f0f0f0f) | tops;
        const float d = half_of(unit.d) * (1.0f / 32.0f);
#pragma unroll
        for (int part = 0; part < 4; part++) {
            to.scale[part] = d * float(int((scales >> (8 * part)) & 0xff) - 32);
        }
    }

    static DEVICE void group(const uint8_t* row, int g, int (&q)[8], float (&scale)[2], float (&offset)[2]) {
        const uint8_t* block = row + g / 8 * BYTES;
        const int half = g % 8 / 4;
        const Words<9> third(block), pairs(block + 32 + half * 32);
#pragma unroll
        for (int i = 0; i < 8; i++) q[i] = four(pairs.at(4 * i), g % 4 * 2, third.at(4 * i), g % 8);
        const float d = half_of(load_16(block + 108)) * (1.0f / 32.0f);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int i = g % 8 * 2 + h;
            const int low = (__ldg(block + 96 + i % 8) >> (4 * half)) & 15;
            const int top = (__ldg(block + 104 + i % 4) >> (i / 4 * 2)) & 3;
            scale[h] = d * float((low | top << 4) - 32);
            offset[h] = 0.0f;
        }
    }
};

// Q6_K: superblocks of 256 6-bit values less 32; 16 sub-blocks with signed byte scales.
//
// { u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d }: each half of the superblock (128 values) has 64 bytes of
// low nibbles and 32 bytes of high bit pairs. Values 0-63 of a half are low nibbles, 64-127 high nibbles; the
// pairs at bits 0, 2, 4, 6 of qh belong to values 0-31, 32-63, 64-95, 96-127. Bits are put on top of their
// byte, whose sign is then turned: that makes 4 times the value.
#pragma once
#include "units.cuh"

struct Q6_K {
    static constexpr int VALUES = 256, BYTES = 210, PER_SCALE = 16;
    static constexpr int PARTS = 4, STEP = 2;  // a unit: the four sub-blocks that 16 bytes of qh belong to
    static constexpr bool OFFSETS = false;

    struct Unit {
        Wide low, low_32, high;  // ql of values 0-15 and 64-79, of 32-47 and 96-111, and their qh
        Words<3> scales;
        uint32_t d, before;
    };

    static DEVICE int chunk(int u) { return u / 4 * 16 + u % 4 / 2 * 8 + u % 2; }

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 4 * BYTES;
        const int half = u % 4 / 2, at = u % 2 * 16;
        const uint8_t *low = block + half * 64 + at, *high = block + 128 + half * 32 + at;
        const uint32_t before = reinterpret_cast<uint64_t>(block) % 16;  // of all three: 16 divides the rest
        const Words<3> scales(block + 192 + half * 8);
        return {Wide(low, before), Wide(low + 32, before),   Wide(high, before),
                scales,            load_16(block + 208), before};
    }

    // Four values, of a word's nibbles and pairs of bits that begin at these bits of their bytes.
    static DEVICE int four(uint32_t nibbles, int nibble, uint32_t pairs, int pair) {
        return ((nibbles >> nibble << 2) & 0x3c3c3c3c) | (((pairs >> pair << 6) & 0xc0c0c0c0) ^ 0x80808080);
    }

    static DEVICE void unpack(const Unit& unit, int u, Unpacked<Q6_K>& to) {
        uint32_t low[4], low_32[4], high[4];
        unit.low.to(unit.before, low), unit.low_32.to(unit.before, low_32), unit.high.to(unit.before, high);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to.q[i] = four(low[i], 0, high[i], 0);
            to.q[4 + i] = four(low_32[i], 0, high[i], 2);
            to.q[8 + i] = four(low[i], 4, high[i], 4);
            to.q[12 + i] = four(low_32[i], 4, high[i], 6);
        }
        const uint32_t scales = __byte_perm(unit.scales.at(0), unit.scales.at(4), u % 2 ? 0x7531 : 0x6420);
        const float d = half_of(unit.d) * 0.25f;
#pragma unroll
        for (int i = 0; i < 4; i++) to.scale[i] = d * float(int8_t(scales >> (8 * i)));
    }

    static DEVICE void group(const uint8_t* row, int g, int (&q)[8], float (&scale)[2], float (&offset)[2]) {
        const uint8_t* block = row + g / 8 * BYTES;
        const int half = g % 8 / 4, i = g % 4;
        const Words<9> low(block + half * 64 + i % 2 * 32), high(block + 128 + half * 32);
#pragma unroll
        for (int w = 0; w < 8; w++) q[w] = four(low.at(4 * w), i / 2 * 4, high.at(4 * w), 2 * i);
        const float d = half_of(load_16(block + 208)) * 0.25f;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            scale[h] = d * float(int8_t(__ldg(block + 192 + g % 8 * 2 + h)));
            offset[h] = 0.0f;
        }
    }
};

// IQ1_M: superblocks of 256 values, eight at a time from IQ1_S's code book.
//
// { u8 q[32]; u8 qh[16]; u16 scales[4] }: nibble i of qh holds the top of index q[i] (three bits) and the
// sign of its delta of 1/8. The top nibbles of scales, first the lowest, are a half float d; below they have
// four scales of three bits, one a 16 values. A weight is d * (2 * scale + 1) * (entry + delta).
#pragma once
#include "iq1_s.cuh"

struct IQ1_M : UnitsAreGroups<IQ1_M> {
    static constexpr int VALUES = 256, BYTES = 56, PER_SCALE = 16;
    static constexpr bool OFFSETS = true;

    struct Unit {
        uint32_t q, tops, scales[2];
    };

    static DEVICE Unit load(const uint8_t* row, int u) {
        const uint8_t* block = row + u / 8 * BYTES;
        Unit unit;
        unit.q = load_2x16(block + u % 8 * 4);
        unit.tops = load_16(block + 32 + u % 8 * 2);
        load_64(block + 48, unit.scales);
        return unit;
    }

    static DEVICE void unpack(const Unit& unit, int u, Unpacked<IQ1_M>& to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t top = unit.tops >> (4 * i);
            iq1_values(((unit.q >> (8 * i)) & 0xff) | (top & 7) << 8, top & 8, to.q[2 * i], to.q[2 * i + 1]);
        }
        const uint32_t a = unit.scales[0] & 0xf000f000, b = unit.scales[1] & 0xf000f000;
        const float d = half_of((a >> 12 & 0xf) | (a >> 24) | (b >> 4 & 0xf00) | (b >> 16)) * 0.125f;
        // Four groups have their scales in a word, six bits each, of which every second begins at bit 16.
        const uint32_t scales = (u % 8 < 4 ? unit.scales[0] : unit.scales[1]) >> (u % 4 / 2 * 16 + u % 2 * 6);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            to.scale[h] = d * float(2 * ((scales >> (3 * h)) & 7) + 1);
            to.offset[h] = IQ1_OFFSET * to.scale[h];
        }
    }
};

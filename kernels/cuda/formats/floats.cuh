// F32, F16 and BF16: what is multiplied with columns of floats.
//
// A unit is 32 bytes of a row, where all rows are aligned to 16; `value` is the i-th of any row.
#pragma once
#include "loads.cuh"

struct F32 {
    static constexpr int VALUES = 1, BYTES = 4, UNIT = 8;

    static DEVICE float value(const uint8_t* row, int64_t i) {
        return __ldg(reinterpret_cast<const float*>(row) + i);
    }

    static DEVICE void unpack(const uint32_t (&words)[8], float (&values)[UNIT]) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) values[i] = __uint_as_float(words[i]);
    }
};

struct F16 {
    static constexpr int VALUES = 1, BYTES = 2, UNIT = 16;

    static DEVICE float value(const uint8_t* row, int64_t i) { return half_of(load_16(row + 2 * i)); }

    static DEVICE void unpack(const uint32_t (&words)[8], float (&values)[UNIT]) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            values[2 * i] = half_of(words[i]);
            values[2 * i + 1] = half_of(words[i] >> 16);
        }
    }
};

struct BF16 {
    static constexpr int VALUES = 1, BYTES = 2, UNIT = 16;

    static DEVICE float value(const uint8_t* row, int64_t i) {
        return __uint_as_float(load_16(row + 2 * i) << 16);
    }

    static DEVICE void unpack(const uint32_t (&words)[8], float (&values)[UNIT]) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            values[2 * i] = __uint_as_float(words[i] << 16);
            values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000);
        }
    }
};

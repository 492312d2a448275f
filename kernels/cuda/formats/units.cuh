// What a thread takes of a row at once, and what the units of all formats look like when they are unpacked.
#pragma once
#include "loads.cuh"

// PARTS times 16 values: value = scale * q - offset, one scale (and offset) every PER_SCALE values.
template <class F> struct Unpacked {
    static constexpr int SCALES = 16 * F::PARTS / F::PER_SCALE;
    int q[4 * F::PARTS];
    float scale[SCALES];
    float offset[SCALES];  // not written where F::OFFSETS is false
};

// A format whose units are groups of 32 values in a row.
template <class F> struct UnitsAreGroups {
    static constexpr int PARTS = 2, STEP = 1;

    static DEVICE int chunk(int u) { return 2 * u; }

    static DEVICE void group(const uint8_t* row, int g, int (&q)[8], float (&scale)[2], float (&offset)[2]) {
        Unpacked<F> unpacked;
        F::unpack(F::load(row, g), g, unpacked);
#pragma unroll
        for (int i = 0; i < 8; i++) q[i] = unpacked.q[i];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            scale[h] = unpacked.scale[h * 16 / F::PER_SCALE];
            offset[h] = F::OFFSETS ? unpacked.offset[h * 16 / F::PER_SCALE] : 0.0f;
        }
    }
};

// Floats to quantized columns (columns.cuh): the last step of a kernel, by whole warps.
//
// Bytes and scales are those of kernels/cpu/columns.py.
#pragma once
#include "columns.cuh"

constexpr int LANES = 8;  // of a block of 32 values: four a lane
constexpr int NOT_FINITE = 0x7f800000;
constexpr float MOST = 3.402823466e+38f;

// The largest of integers over a block's lanes.
DEVICE int largest_of(int value) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
        value = max(value, __shfl_xor_sync(ALL_LANES, value, step));
    }
    return value;
}

DEVICE int bits_of(float v) { return __float_as_int(fabsf(v)); }

// Four of a block's values to bytes of a column, by all lanes of a warp; i: of the first value.
DEVICE void quantize_four(const float4& v, uint8_t* column, int k, int i, bool valid) {
    // As integers: what is no number is larger than all that are.
    const int most = largest_of(max(max(bits_of(v.x), bits_of(v.y)), max(bits_of(v.z), bits_of(v.w))));
    const bool finite = most < NOT_FINITE;
    const float largest = __int_as_float(most), by = largest > 0.0f ? fminf(127.0f / largest, MOST) : 0.0f;
    // What is no number has no byte; the scale carries it on: inf - inf is none.
    const float scale = (finite ? largest : largest - largest) * (1.0f / 127.0f);
    int q[4] = {};
    if (finite) {
        q[0] = __float2int_rn(v.x * by), q[1] = __float2int_rn(v.y * by);
        q[2] = __float2int_rn(v.z * by), q[3] = __float2int_rn(v.w * by);
    }
    const int sum = warp_sum<LANES>(q[0] + q[1] + q[2] + q[3]);
    if (!valid) return;
    *reinterpret_cast<char4*>(column + i) = make_char4(q[0], q[1], q[2], q[3]);
    if (i % COLUMN_BLOCK == 0) {
        float2* pair = reinterpret_cast<float2*>(column + k) + i / COLUMN_BLOCK;
        *pair = make_float2(scale, scale * float(sum));
        if (i + COLUMN_BLOCK == k && k % (2 * COLUMN_BLOCK) != 0) pair[1] = float2();
    }
}

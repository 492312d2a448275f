// Quantized columns: activations as bytes in blocks of 32, what quantized weights are multiplied with.
//
// A column of k values (a multiple of 32) is k int8, then k / 32 pairs of float { d, d * the sum of the
// block's bytes }, filled up with zeros to a multiple of 16 bytes: x ~ d * byte. With the sums, what a format
// takes off each value is multiplied once a block. Columns lie one after the other, column_bytes(k) apart,
// aligned to 16 bytes.
#pragma once
#include "common.cuh"

constexpr int COLUMN_BLOCK = 32;

DEVICE int column_bytes(int k) { return (k + k / COLUMN_BLOCK * int(sizeof(float2)) + 15) / 16 * 16; }

struct Column {
    const uint8_t* bytes;
    int k;

    DEVICE Column(const uint8_t* columns, int k, int column)
        : bytes(columns + int64_t(column) * column_bytes(k)), k(k) {}

    // 16 bytes: half a block.
    DEVICE int4 chunk(int i) const { return reinterpret_cast<const int4*>(bytes)[i]; }

    // { d, d * the sum of the bytes } of a block.
    DEVICE float2 scale(int block) const {
        return reinterpret_cast<const float2*>(bytes + k)[block];
    }
};

// What the attention kernels share: their arguments, which heads and positions a block has, and queries in
// the range of 16-bit floats.
//
// Products are those of tensor cores, whose factors are 16-bit floats. Keys and values of f16 and q8_0 are
// such; queries and weights are split into several (halves.cuh). One half alone would be off by 3e-4 of the
// result, and by 1e-2 where scores are large.
//
// SOFT_CAP: 1 where scores are capped.
#pragma once
#include "cells.cuh"
#include "softmax.cuh"

DEVICE constexpr int min_of(int a, int b) { return a < b ? a : b; }
DEVICE constexpr int max_of(int a, int b) { return a > b ? a : b; }

struct Attention {
    const float* q;        // [n, heads, KEY_DIM]
    float* y;              // [n, heads, VALUE_DIM]: of all parts
    float* sums;           // [n, heads, parts, VALUE_DIM] and
    float2* states;        // [n, heads, parts], where there are several
    const int* positions;  // [n]
    const int* sequences;  // [n], rows of
    const int* tables;     // [, table_stride] the pages of a sequence
    const uint8_t* keys;
    const uint8_t* values;
    const float* sinks;  // [heads] or null
    int n, heads, kv_heads, table_stride;
    int window;  // how many positions are seen, the token's own one included; 0: all
    float scale;
    float cap;  // SOFT_CAP: scores are cap * tanh(score / cap)

    DEVICE const int* table(int sequence) const { return tables + int64_t(sequence) * table_stride; }

    // The first position that one sees.
    DEVICE int oldest(int position) const { return window > 0 ? max(position - window + 1, 0) : 0; }

    // The score of a product of a key and a query in range.
    DEVICE float score(float product, float factor) const {
        // A division that is two units off takes fewer registers than one that is not.
        if constexpr (SOFT_CAP) return cap * LOG2_E * tanhf(__fdividef(product * factor, cap * LOG2_E));
        return product * factor;
    }
};

struct Span {
    int begin, end;
};

// One of several parts, whose sizes differ by one at most.
DEVICE Span part_of(Span all, int part, int parts) {
    const int64_t count = all.end - all.begin;
    return {all.begin + int(count * part / parts), all.begin + int(count * (part + 1) / parts)};
}

// Heads of a key-value head, at most MOST, that a block computes: blockIdx.x is [kv_heads, tiles of a group].
template <int MOST> struct HeadTile {
    int kv_head, first, count;

    DEVICE explicit HeadTile(const Attention& a) {
        const int group = a.heads / a.kv_heads, tiles = ceil_div(group, MOST);
        const int begin = blockIdx.x % tiles * MOST;
        kv_head = blockIdx.x / tiles;
        first = kv_head * group + begin, count = min(MOST, group - begin);
    }
};

// COUNT values of a row of DIM, zeros behind its end.
template <int DIM, int COUNT> DEVICE void load_values(const float* row, int first, float (&x)[COUNT]) {
    if constexpr (DIM % COUNT == 0) {
        constexpr int WIDE = COUNT < 4 ? COUNT : 4;
        typedef Words<WIDE> Wide;
#pragma unroll
        for (int i = 0; i < COUNT; i += WIDE) {
            Wide wide = {};
            if (first < DIM) wide = *reinterpret_cast<const Wide*>(row + first + i);
#pragma unroll
            for (int j = 0; j < WIDE; j++) x[i + j] = __uint_as_float(wide.word[j]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++) x[i] = first + i < DIM ? row[first + i] : 0.0f;
    }
}

// The power of two that brings a query's largest value to 2^14: so neither it nor its low part leaves the
// range of a half. `back`: what scores are to be multiplied by.
DEVICE float into_range(float largest, float& back) {
    const int exponent = max(__float_as_int(largest) >> 23, 15);
    back = __int_as_float((exponent - 14) << 23);
    return __int_as_float((268 - exponent) << 23);
}

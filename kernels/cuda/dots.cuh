// Products of -DROWS rows of weights with up to -DCOLUMNS columns: what one lane has of them.
//
// The bytes of all rows are asked for before any of them is used, and a column's bytes serve all rows.
#pragma once
#include "columns.cuh"
#include "formats.cuh"
#include "ptx.cuh"

// What a lane asks for of a row at once.
template <class F> DEVICE constexpr int unit_bytes() {
    if constexpr (IS_FLOATS<F>) return 32;
    else return int(sizeof(typename F::Unit));
}

DEVICE int dot_16(const int* q, const int4& x, int sum) {
    return __dp4a(q[0], x.x, __dp4a(q[1], x.y, __dp4a(q[2], x.z, __dp4a(q[3], x.w, sum))));
}

// sums[r * stride] += a unit of row r times the same unit of a column, which begins at this chunk.
template <class F>
DEVICE void add_unit(const Unpacked<F> (&w)[ROWS], const Column& x, int chunk, float* sums, int stride) {
    constexpr int SPAN = F::PER_SCALE / 16;
    const int ones[4] = {0x01010101, 0x01010101, 0x01010101, 0x01010101};
#pragma unroll
    for (int s = 0; s < Unpacked<F>::SCALES; s++) {
        const int first = chunk + s * SPAN * F::STEP;
        const float2 scale = x.scale(first / 2);
        int products[ROWS] = {}, bytes = 0;
#pragma unroll
        for (int part = 0; part < SPAN; part++) {
            const int4 values = x.chunk(first + part * F::STEP);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                products[r] = dot_16(w[r].q + 4 * (s * SPAN + part), values, products[r]);
            }
            if (F::OFFSETS && SPAN == 1) bytes = dot_16(ones, values, bytes);
        }
        const float sum = SPAN == 1 ? scale.x * float(bytes) : scale.y;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            sums[r * stride] += scale.x * (w[r].scale[s] * float(products[r]));
            if (F::OFFSETS) sums[r * stride] -= w[r].offset[s] * sum;
        }
    }
}

// Ask for the first bytes of each row that this lane takes: columns may still have to be written.
DEVICE void prefetch_rows(const uint8_t* const (&rows)[ROWS], int64_t offset) {
#if __CUDA_ARCH__ >= 900  // others have nothing to wait for
#pragma unroll
    for (int r = 0; r < ROWS; r++) prefetch_l2(rows[r] + offset);
#endif
}

// This lane's share of rows[ROWS] times n <= COLUMNS quantized columns: units first, first + step...
template <class F>
DEVICE void dot_quantized(const uint8_t* const (&rows)[ROWS], const uint8_t* x, int k, int n, int first,
                          int step, float (&sums)[ROWS * COLUMNS]) {
    const int count = k / (16 * F::PARTS);
    if (first < count) prefetch_rows(rows, int64_t(first) * (16 * F::PARTS * F::BYTES) / F::VALUES);
    wait_for_previous();
    for (int u = first; u < count; u += step) {
        typename F::Unit units[ROWS];
        Unpacked<F> w[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) units[r] = F::load(rows[r], u);
#pragma unroll
        for (int r = 0; r < ROWS; r++) F::unpack(units[r], u, w[r]);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            if (c < n) add_unit(w, Column(x, k, c), F::chunk(u), sums + c, COLUMNS);
        }
    }
}

// The same of floats, where rows of weights and of x are aligned.
template <class F>
DEVICE void dot_floats(const uint8_t* const (&rows)[ROWS], const float* x, int k, int n, int first, int step,
                       float (&sums)[ROWS * COLUMNS]) {
    const int count = k / F::UNIT;
    if (first < count) prefetch_rows(rows, 32 * first);
    wait_for_previous();
    for (int u = first; u < count; u += step) {
        uint32_t words[ROWS][8];
        float w[ROWS][F::UNIT];
#pragma unroll
        for (int r = 0; r < ROWS; r++) load_128(rows[r] + 32 * u, words[r]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) F::unpack(words[r], w[r]);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            if (c >= n) continue;
            const float4* values = reinterpret_cast<const float4*>(x + int64_t(c) * k + u * F::UNIT);
#pragma unroll
            for (int i = 0; i < F::UNIT; i += 4) {
                const float4 v = values[i / 4];
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float& sum = sums[r * COLUMNS + c];
                    sum += w[r][i] * v.x, sum += w[r][i + 1] * v.y;
                    sum += w[r][i + 2] * v.z, sum += w[r][i + 3] * v.w;
                }
            }
        }
    }
}

// The same of floats that are aligned to themselves only.
template <class F>
DEVICE void dot_single(const uint8_t* const (&rows)[ROWS], const float* x, int k, int n, int first, int step,
                       float (&sums)[ROWS * COLUMNS]) {
    wait_for_previous();
    for (int i = first; i < k; i += step) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const float v = c < n ? x[int64_t(c) * k + i] : 0.0f;
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[r * COLUMNS + c] += F::value(rows[r], i) * v;
        }
    }
}

// sums[r * COLUMNS + c] of rows times columns from x on, which are quantized or floats, as the format wants
// them.
template <class F>
DEVICE void dot_rows(const uint8_t* const (&rows)[ROWS], const uint8_t* x, int k, int n, int first, int step,
                     float (&sums)[ROWS * COLUMNS]) {
    if constexpr (IS_FLOATS<F>) {
        const float* floats = reinterpret_cast<const float*>(x);
        if (k % F::UNIT == 0) {
            dot_floats<F>(rows, floats, k, n, first, step, sums);
        } else {
            dot_single<F>(rows, floats, k, n, first, step, sums);
        }
    } else {
        dot_quantized<F>(rows, x, k, n, first, step, sums);
    }
}

// The bytes from one column to the next.
template <class F> DEVICE int64_t column_stride(int k) {
    return IS_FLOATS<F> ? int64_t(k) * int(sizeof(float)) : int64_t(column_bytes(k));
}

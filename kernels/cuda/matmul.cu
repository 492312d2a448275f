// Quantized weights times many quantized columns, with the tensor cores' int8 products: see int8_tiles.cuh.
//
// A block of 2 * TILE_ROWS threads computes TILE_ROWS rows of TILE_COLUMNS columns: see
// ggrun/devices/cuda/tiles.py for the choice.
//
// variants: FORMAT=Q4_0|Q4_1|Q5_0|Q5_1|Q8_0|IQ4_NL|MXFP4 TILE_ROWS=64 TILE_COLUMNS=16|32|64
// variants: FORMAT=Q2_K|Q3_K|Q4_K|Q5_K|Q6_K|IQ4_XS|TQ1_0|TQ2_0 TILE_ROWS=64 TILE_COLUMNS=16|32|64
// variants: FORMAT=IQ1_S|IQ1_M|IQ2_XXS|IQ2_XS|IQ2_S|IQ3_XXS|IQ3_S TILE_ROWS=64 TILE_COLUMNS=16|32|64
// variants: FORMAT=Q4_0|Q4_1|Q5_0|Q5_1|Q8_0|IQ4_NL|MXFP4 TILE_ROWS=128 TILE_COLUMNS=128
// variants: FORMAT=Q4_K|Q5_K|IQ4_XS|TQ1_0 TILE_ROWS=128 TILE_COLUMNS=128
// variants: FORMAT=IQ1_S|IQ2_XXS|IQ3_XXS|IQ3_S TILE_ROWS=128 TILE_COLUMNS=128
#include "expert_tiles.cuh"
#include "int8_tiles.cuh"

// y[n, rows] = x[n, k] . w[rows, k]^T * scale + bias[rows], which may be null.
//
// Grid: tiles of columns, tiles of rows, splits of k. With several splits each writes its sums, and y is
// [splits, n, rows], which sum_splits adds up: scale is 1 then, and bias null.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    matmul(const uint8_t* __restrict__ w, int rows, int k, const uint8_t* __restrict__ x, int n,
           float* __restrict__ y, float scale, const float* __restrict__ bias) {
    wait_for_previous();
    const int row = blockIdx.y * TILE_ROWS, first = blockIdx.x * TILE_COLUMNS;
    if (first >= n) return;
    const long long steps = ceil_div(k, STEP), split = blockIdx.z, splits = gridDim.z;
    const int begin = int(steps * split / splits), end = int(steps * (split + 1) / splits);
    Sums sums = {};
    const ColumnLoader columns({x, nullptr, first, n - first, k});
    multiply_tile(sums, RowLoader(w, rows, k, row), columns, begin, end);
    y += (split * n + first) * rows + row;
    write_tile(sums, y, rows, rows - row, n - first, scale, bias ? bias + row : nullptr);
}

// y[pair, rows] = x[pair] . w[expert, rows, k]^T * scales[expert], which may be null: of the pairs
// starts[expert] to starts[expert + 1]. The pair's column is number tokens[pair] of x, or the pair's own
// where tokens is null.
//
// Grid: at least as many tiles of pairs as there can be, tiles of rows.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    matmul_experts(const uint8_t* __restrict__ w, int rows, int k, const uint8_t* __restrict__ x,
                   const int* __restrict__ starts, int experts, const int* __restrict__ tokens,
                   float* __restrict__ y, const float* __restrict__ scales) {
    wait_for_previous();
    const ExpertTile& tile = expert_tile(starts, experts, TILE_COLUMNS);
    if (tile.expert < 0) return;
    const int row = blockIdx.y * TILE_ROWS;
    w += (long long)tile.expert * rows * (k / Weights::VALUES) * Weights::BYTES;
    Sums sums = {};
    const ColumnLoader columns({x, tokens, tile.first, tile.count, k});
    multiply_tile(sums, RowLoader(w, rows, k, row), columns, 0, ceil_div(k, STEP));
    y += (long long)tile.first * rows + row;
    write_tile(sums, y, rows, rows - row, tile.count, scales ? scales[tile.expert] : 1.0f, nullptr);
}

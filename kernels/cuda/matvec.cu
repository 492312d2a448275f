// Products with few columns, as in decoding: bound by how fast weights come from memory.
//
// -DFORMAT is the weights', -DCOLUMNS how many columns a block takes at most, -DROWS how many rows a warp
// has. Quantized formats take quantized columns (columns.cuh), the others rows of floats.
//
// A lane sums ROWS * COLUMNS products. Blocks are (32, split, teams): the `split` warps of a team share its
// rows, each having every split-th stretch of them, and sum up in shared memory, always in the same order.
// ggrun/devices/cuda/matvec.py chooses all of these.
//
// variants: FORMAT=F32|F16|BF16|Q4_0|Q4_1|Q5_0|Q5_1|Q8_0|IQ4_NL|MXFP4 COLUMNS=1|4 ROWS=2
// variants: FORMAT=F32|F16|BF16|Q4_0|Q4_1|Q5_0|Q5_1|Q8_0|IQ4_NL|MXFP4 COLUMNS=8 ROWS=4
// variants: FORMAT=Q4_K|Q5_K COLUMNS=4 ROWS=2
// variants: FORMAT=Q4_K|Q5_K COLUMNS=1|8 ROWS=4
// variants: FORMAT=Q2_K|Q3_K|Q6_K|IQ4_XS|TQ1_0|TQ2_0 COLUMNS=1|4 ROWS=2
// variants: FORMAT=Q2_K|Q3_K|Q6_K|IQ4_XS|TQ1_0|TQ2_0 COLUMNS=8 ROWS=4
// variants: FORMAT=IQ1_S|IQ1_M|IQ2_XXS|IQ2_XS|IQ2_S|IQ3_XXS|IQ3_S COLUMNS=1|4 ROWS=2
// variants: FORMAT=IQ1_S|IQ1_M|IQ2_XXS|IQ2_XS|IQ2_S|IQ3_XXS|IQ3_S COLUMNS=8 ROWS=4
#include "dots.cuh"

constexpr int SUMS = ROWS * COLUMNS;
static_assert(SUMS <= WARP, "each lane finishes one of the sums");
static_assert(ROWS % 2 == 0, "of two matrices a warp has half of the rows each");

constexpr int MOST_WARPS = 8;  // of a block

// So many blocks want to be on a multiprocessor at once, to hide how long memory takes: fewer where a lane
// asks for much at once. Left to itself the compiler saves registers for more, and loads one after the other
// to that end.
constexpr bool MUCH = ROWS * unit_bytes<Weights>() >= 192;
constexpr int RESIDENT = COLUMNS == 1 ? (MUCH ? 2 : 3) : COLUMNS == 4 ? 2 : 1;
#define DECODE_KERNEL extern "C" __global__ void __launch_bounds__(MOST_WARPS * WARP, RESIDENT)

// The sum of lane row * COLUMNS + column; that of all other lanes, and of warps behind a team's first, is
// nothing.
DEVICE float team_sums(const uint8_t* const (&rows)[ROWS], const uint8_t* x, int k, int n) {
    __shared__ float partial[MOST_WARPS][SUMS];
    const int lane = threadIdx.x, split = blockDim.y;
    float sums[SUMS] = {};
    dot_rows<Weights>(rows, x, k, n, threadIdx.y * WARP + lane, split * WARP, sums);
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < SUMS; i++) {
        const float sum = warp_sum(sums[i]);
        if (lane == i) mine = sum;
    }
    if (split == 1) return mine;
    float(*team)[SUMS] = partial + threadIdx.z * split;
    if (lane < SUMS) team[threadIdx.y][lane] = mine;
    __syncthreads();
    if (threadIdx.y > 0 || lane >= SUMS) return 0.0f;
    for (int warp = 1; warp < split; warp++) mine += team[warp][lane];
    return mine;
}

// The number of a team; behind the last row there are teams that have nothing to do but wait for the others.
DEVICE int team() { return blockIdx.x * blockDim.z + threadIdx.z; }

// What is done with the sums of a team's rows: finish(row, column, sum) for those that there are.
template <class Finish>
DEVICE void product(const uint8_t* w, const uint8_t* x, int first, int rows, int k, int n, Finish finish) {
    const int row = first + threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    const uint8_t* of_warp[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) of_warp[r] = w + min(first + r, rows - 1) * row_bytes<Weights>(k);
    const float sum = team_sums(of_warp, x, k, n);
    if (threadIdx.y == 0 && threadIdx.x < SUMS && row < rows && column < n) finish(row, column, sum);
}

// The same of two matrices, of which a warp has half as many rows: finish(row, column, gate's sum, up's sum).
template <class Finish>
DEVICE void two_products(const uint8_t* gate, const uint8_t* up, const uint8_t* x, int rows, int k, int n,
                         Finish finish) {
    constexpr int PAIRS = ROWS / 2;
    const int first = team() * PAIRS, row = first + threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    const uint8_t* of_warp[ROWS];
#pragma unroll
    for (int r = 0; r < PAIRS; r++) {
        const int64_t begin = min(first + r, rows - 1) * row_bytes<Weights>(k);
        of_warp[r] = gate + begin, of_warp[PAIRS + r] = up + begin;
    }
    const float sum = team_sums(of_warp, x, k, n);
    const float of_up = __shfl_down_sync(ALL_LANES, sum, PAIRS * COLUMNS);
    const bool is_gate = threadIdx.y == 0 && threadIdx.x < PAIRS * COLUMNS;
    if (is_gate && row < rows && column < n) finish(row, column, sum, of_up);
}

// x / (1 + e^-x).
DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }

// The columns of blockIdx.y: the first, and how many.
DEVICE int first_column() { return blockIdx.y * COLUMNS; }
DEVICE int columns_left(int n) { return min(n - first_column(), COLUMNS); }

// y[n, rows] = x[n, k] . w[rows, k]^T * scale + bias + residual, of which the last two may be null; residual
// may be y. Blocks [teams of rows, columns / COLUMNS].
DECODE_KERNEL
matvec(const uint8_t* w, const uint8_t* x, float* y, int rows, int k, int n, float scale, const float* bias,
       const float* residual) {
    if (columns_left(n) <= 0) return wait_for_previous();
    const int64_t begin = int64_t(first_column()) * rows;
    x += first_column() * column_stride<Weights>(k);
    product(w, x, team() * ROWS, rows, k, columns_left(n), [=](int row, int column, float sum) {
        const int64_t i = begin + int64_t(column) * rows + row;
        float value = sum * scale;
        if (bias) value += bias[row];
        if (residual) value += residual[i];
        y[i] = value;
    });
}

// The same of two or three matrices, without residuals: rows2 is 0 where there are two. A team has rows of
// one of them.
DECODE_KERNEL
matvec_merged(const uint8_t* w0, const uint8_t* w1, const uint8_t* w2, const uint8_t* x, float* y0, float* y1,
              float* y2, int rows0, int rows1, int rows2, int k, int n, float scale0, float scale1,
              float scale2, const float* bias0, const float* bias1, const float* bias2) {
    if (columns_left(n) <= 0) return wait_for_previous();
    const int teams0 = ceil_div(rows0, ROWS), teams1 = teams0 + ceil_div(rows1, ROWS);
    const bool is_0 = team() < teams0, is_1 = !is_0 && (team() < teams1 || rows2 == 0);
    const uint8_t* w = is_0 ? w0 : is_1 ? w1 : w2;
    const int rows = is_0 ? rows0 : is_1 ? rows1 : rows2, before = is_0 ? 0 : is_1 ? teams0 : teams1;
    x += first_column() * column_stride<Weights>(k);
    product(w, x, (team() - before) * ROWS, rows, k, columns_left(n), [&](int row, int column, float sum) {
        float* y = is_0 ? y0 : is_1 ? y1 : y2;
        const float* bias = is_0 ? bias0 : is_1 ? bias1 : bias2;
        const float scale = is_0 ? scale0 : is_1 ? scale1 : scale2;
        y[int64_t(first_column() + column) * rows + row] = sum * scale + (bias ? bias[row] : 0.0f);
    });
}

// y[n, rows] = silu(gate) * up, each a product as in matvec, with its own scale and bias.
DECODE_KERNEL
matvec_swiglu(const uint8_t* gate, const uint8_t* up, const uint8_t* x, float* y, int rows, int k, int n,
              float gate_scale, float up_scale, const float* gate_bias, const float* up_bias) {
    if (columns_left(n) <= 0) return wait_for_previous();
    const int64_t begin = int64_t(first_column()) * rows;
    x += first_column() * column_stride<Weights>(k);
    two_products(gate, up, x, rows, k, columns_left(n), [=](int row, int column, float g, float u) {
        g = g * gate_scale + (gate_bias ? gate_bias[row] : 0.0f);
        u = u * up_scale + (up_bias ? up_bias[row] : 0.0f);
        y[begin + int64_t(column) * rows + row] = silu(g) * u;
    });
}

#if COLUMNS == 1  // as a pair of a token and its expert has
// The expert whose pairs [starts[e], starts[e + 1]) a pair is one of: all before it end at the pair or
// earlier.
DEVICE int expert_of(const int* starts, int experts, int pair) {
    int before = 0;
    for (int e = threadIdx.x; e < experts; e += WARP) before += starts[e + 1] <= pair;
    return warp_sum(before);
}

// y[pair] = x[column] . w[expert]^T * scales[expert]: each pair of a token and its expert has a column.
// tokens says which, or is null where the columns are the pairs'. Scales may be null. Blocks [teams of rows,
// pairs].
DECODE_KERNEL
matvec_experts(const uint8_t* w, const uint8_t* x, float* y, const int* starts, const int* tokens,
               int experts, int rows, int k, int pairs, const float* scales) {
    wait_for_previous();  // for `starts`, too
    const int pair = blockIdx.y;
    if (pair >= pairs) return;
    const int expert = expert_of(starts, experts, pair);
    w += int64_t(expert) * rows * row_bytes<Weights>(k);
    x += (tokens ? tokens[pair] : pair) * column_stride<Weights>(k);
    const float scale = scales ? scales[expert] : 1.0f;
    product(w, x, team() * ROWS, rows, k, 1,
            [=](int row, int, float sum) { y[int64_t(pair) * rows + row] = sum * scale; });
}

// y[pair] = silu(gate) * up, each as in matvec_experts.
DECODE_KERNEL
matvec_experts_swiglu(const uint8_t* gate, const uint8_t* up, const uint8_t* x, float* y, const int* starts,
                      const int* tokens, int experts, int rows, int k, int pairs, const float* gate_scales,
                      const float* up_scales) {
    wait_for_previous();  // for `starts`, too
    const int pair = blockIdx.y;
    if (pair >= pairs) return;
    const int expert = expert_of(starts, experts, pair);
    const int64_t begin = int64_t(expert) * rows * row_bytes<Weights>(k);
    x += (tokens ? tokens[pair] : pair) * column_stride<Weights>(k);
    const float gate_scale = gate_scales ? gate_scales[expert] : 1.0f;
    const float up_scale = up_scales ? up_scales[expert] : 1.0f;
    two_products(gate + begin, up + begin, x, rows, k, 1, [=](int row, int, float g, float u) {
        y[int64_t(pair) * rows + row] = silu(g * gate_scale) * (u * up_scale);
    });
}
#endif

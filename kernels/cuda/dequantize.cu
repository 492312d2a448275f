// Weights to f16 or f32, -DOUTPUT: matrices for products with many columns (gemm.cu), and rows of the
// embedding.
//
// variants: FORMAT=F32|F16|BF16|Q4_0|Q4_1|Q5_0|Q5_1|Q8_0|IQ4_NL|MXFP4 OUTPUT=f32|f16
// variants: FORMAT=Q2_K|Q3_K|Q4_K|Q5_K|Q6_K|IQ4_XS|TQ1_0|TQ2_0 OUTPUT=f32|f16
// variants: FORMAT=IQ1_S|IQ1_M|IQ2_XXS|IQ2_XS|IQ2_S|IQ3_XXS|IQ3_S OUTPUT=f32|f16
#include "formats.cuh"
#include "ptx.cuh"

typedef __half f16;
typedef float f32;

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int GROUP = 32;
constexpr int BLOCK_VALUES = GROUP * THREADS;  // a group a thread

DEVICE void convert(float v, f32& to) { to = v; }
DEVICE void convert(float v, f16& to) { to = __float2half_rn(v); }

// A group's 32 values.
template <class F> DEVICE void group_values(const uint8_t* row, int g, OUTPUT (&values)[GROUP]) {
    int q[GROUP / 4];
    float scale[2], offset[2];
    F::group(row, g, q, scale, offset);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        const int h = i / 16;
        convert(scale[h] * float(int8_t(q[i / 4] >> (8 * (i % 4)))) - offset[h], values[i]);
    }
}

// Each lane's group of values, of `groups` in a warp, to where they lie one after the other: through shared
// memory, so that a warp writes whole lines. A group's 16-byte chunks lie there turned, each in banks of its
// own.
DEVICE void write_groups(const OUTPUT (&values)[GROUP], OUTPUT* y, int groups) {
    constexpr int CHUNKS = GROUP * sizeof(OUTPUT) / 16, VALUES = GROUP / CHUNKS, LANES_A_ROW = 8 / CHUNKS;
    __shared__ __align__(16) OUTPUT memory[WARPS][WARP * GROUP];
    OUTPUT* const warp = memory[threadIdx.x / WARP];
    const auto chunk = [=](int group, int i) {
        return warp + (group * CHUNKS + (i ^ (group / LANES_A_ROW % CHUNKS))) * VALUES;
    };
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        OUTPUT* const to = chunk(lane, i);
#pragma unroll
        for (int v = 0; v < VALUES; v++) to[v] = values[i * VALUES + v];
    }
    __syncwarp();
    for (int i = lane; i < groups * CHUNKS; i += WARP) {
        reinterpret_cast<uint4*>(y)[i] = *reinterpret_cast<const uint4*>(chunk(i / CHUNKS, i % CHUNKS));
    }
}

// The values from `first` on, as many as a block takes of the `count` at w, to y + first.
template <class F> DEVICE void dequantize_block(const uint8_t* w, OUTPUT* y, int64_t first, int64_t count) {
    if constexpr (IS_FLOATS<F>) {
        for (int64_t i = first + threadIdx.x; i < min(count, first + BLOCK_VALUES); i += THREADS) {
            convert(F::value(w, i), y[i]);
        }
    } else {
        const int64_t of_warp = first + threadIdx.x / WARP * (WARP * GROUP);
        const int groups = int(min((count - of_warp) / GROUP, int64_t(WARP)));
        if (groups <= 0) return;
        OUTPUT values[GROUP];
        // Groups behind the last are computed from it: all lanes are needed to write.
        const int g = min(int(threadIdx.x) % WARP, groups - 1);
        group_values<F>(w + of_warp / F::VALUES * F::BYTES, g + of_warp % F::VALUES / GROUP, values);
        write_groups(values, y + of_warp, groups);
    }
}

// The `count` values of a matrix, or of some of its rows, to y. Blocks [count / BLOCK_VALUES].
extern "C" __global__ void __launch_bounds__(THREADS)
dequantize(const uint8_t* w, OUTPUT* y, long long count) {
    wait_for_previous();
    dequantize_block<Weights>(w, y, blockIdx.x * int64_t(BLOCK_VALUES), count);
}

// y[i] = row tokens[i] of w[.., k]. Blocks [n, k / BLOCK_VALUES].
extern "C" __global__ void __launch_bounds__(THREADS)
embed(const int* tokens, const uint8_t* w, OUTPUT* y, int k, int n) {
    wait_for_previous();
    if (blockIdx.x >= n) return;
    const uint8_t* row = w + tokens[blockIdx.x] * row_bytes<Weights>(k);
    dequantize_block<Weights>(row, y + int64_t(blockIdx.x) * k, blockIdx.y * int64_t(BLOCK_VALUES), k);
}

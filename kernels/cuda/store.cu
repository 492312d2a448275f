// Rows of new keys or values into the KV cache.
//
// KIND: of the cells.
// variants: KIND=F32|F16|BF16|Q8_0
#include "cells.cuh"

typedef cells::KIND Kind;

constexpr int WARPS = 4;

// Four values of a row of `dim`, zeros behind its end.
DEVICE float4 load_four(const float* row, int first, int dim) {
    if (dim % 4 == 0) {
        if (first >= dim) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        return *reinterpret_cast<const float4*>(row + first);
    }
    return make_float4(first < dim ? row[first] : 0.0f, first + 1 < dim ? row[first + 1] : 0.0f,
                       first + 2 < dim ? row[first + 2] : 0.0f, first + 3 < dim ? row[first + 3] : 0.0f);
}

// The largest magnitude of a block, whose values 8 neighbouring lanes have. As whole numbers, of which those
// of what is no number are the largest.
DEVICE float block_magnitude(float4 x) {
    int most = max(max(__float_as_int(fabsf(x.x)), __float_as_int(fabsf(x.y))),
                   max(__float_as_int(fabsf(x.z)), __float_as_int(fabsf(x.w))));
#pragma unroll
    for (int step = 4; step > 0; step /= 2) most = max(most, __shfl_xor_sync(ALL_LANES, most, step));
    return __int_as_float(most);
}

// Blocks of q8_0, as kernels/cpu/cache/q8_0.py makes them: x less its scale's share, the scale by itself.
DEVICE float4 quantize(float4 x, __half& scale) {
    const float most = block_magnitude(x);
    const float by = most > 0.0f ? 127.0f / most : 0.0f;
    scale = __float2half_rn(most / 127.0f);
    return make_float4(x.x * by, x.y * by, x.z * by, x.w * by);
}

// x[n, heads, dim] into the slots[n] (page * PAGE + position) of the cells; a warp a row.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
store(const float* x, const int* slots, uint8_t* cells, int n, int heads, int dim) {
    wait_for_previous();
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (row >= int64_t(n) * heads) return;
    const int slot = slots[row / heads], head = row % heads, position = slot % PAGE, width = padded(dim);
    uint8_t* const tile = cells + (int64_t(slot / PAGE) * heads + head) * tile_bytes<Kind>(width);
    uint8_t* const target = tile + position * row_bytes<Kind>(width);
    for (int first = 0; first < width; first += 4 * WARP) {
        const int value = first + 4 * (threadIdx.x % WARP);
        float4 four = load_four(x + row * dim, value, dim);
        __half scale;
        if constexpr (Kind::SCALED) four = quantize(four, scale);
        if (value >= width) continue;
        const auto words = Kind::pack(four);
        *reinterpret_cast<decltype(Kind::pack(four))*>(target + value * Kind::BITS / 8) = words;
        if constexpr (Kind::SCALED) {
            __half* const scales = reinterpret_cast<__half*>(tile + PAGE * row_bytes<Kind>(width));
            if (value % BLOCK == 0) scales[value / BLOCK * PAGE + position] = scale;
        }
    }
}

// Rows of float32 to quantized columns (columns.cuh), alone or behind an RMS norm.
#include "ptx.cuh"
#include "quantize.cuh"
#include "reductions.cuh"

constexpr int NORM_WARPS = 16;
constexpr int STRIDE = 4 * NORM_WARPS * WARP;  // values that a block has at once
constexpr int KEPT = 4;  // so many fours a thread keeps of a row; of longer rows the rest is read again
constexpr int NOT_KEPT = KEPT * STRIDE;

// x[n, k] to n columns. Threads: four values each.
extern "C" __global__ void __launch_bounds__(256) quantize(const float* x, uint8_t* columns, int k, int n) {
    wait_for_previous();
    const int64_t i = 4 * (blockIdx.x * int64_t(blockDim.x) + threadIdx.x), total = int64_t(n) * k;
    const bool valid = i < total;
    const float4 v = valid ? *reinterpret_cast<const float4*>(x + i) : float4();
    quantize_four(v, columns + i / k * column_bytes(k), k, int(i % k), valid);
}

DEVICE float4 four(const float* x, int i) { return *reinterpret_cast<const float4*>(x + i); }
DEVICE float sum_of_squares(const float4& v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// This thread's fours of a row; those behind its end are left alone.
DEVICE void load_fours(const float* x, int k, float4 (&fours)[KEPT]) {
#pragma unroll
    for (int f = 0; f < KEPT; f++) {
        const int i = f * STRIDE + 4 * threadIdx.x;
        if (i < k) fours[f] = four(x, i);
    }
}

// x[n, k] / sqrt(mean(x^2) + eps) * weight[k] (Zhang and Sennrich 2019) to n columns, and to normed[n, k]
// where that is not null. Blocks [n].
extern "C" __global__ void __launch_bounds__(NORM_WARPS* WARP)
rms_norm_quantize(const float* x, const float* weight, float* normed, uint8_t* columns, int k, int n,
                  float eps) {
    float4 kept[KEPT] = {}, weights[KEPT] = {};
    load_fours(weight, k, weights);
    wait_for_previous();
    if (blockIdx.x >= n) return;
    x += int64_t(blockIdx.x) * k, columns += int64_t(blockIdx.x) * column_bytes(k);
    if (normed) normed += int64_t(blockIdx.x) * k;
    load_fours(x, k, kept);
    float squares = 0.0f;
#pragma unroll
    for (int f = 0; f < KEPT; f++) squares += sum_of_squares(kept[f]);
    for (int i = NOT_KEPT + 4 * threadIdx.x; i < k; i += STRIDE) squares += sum_of_squares(four(x, i));
    const float scale = rsqrtf(block_reduce(squares, Sum(), 0.0f) / float(k) + eps);
    const auto finish = [&](const float4& a, const float4& w, int i) {
        const float4 b = make_float4(a.x * scale, a.y * scale, a.z * scale, a.w * scale);
        const float4 v = make_float4(b.x * w.x, b.y * w.y, b.z * w.z, b.w * w.w);
        if (normed && i < k) *reinterpret_cast<float4*>(normed + i) = v;
        quantize_four(v, columns, k, i, i < k);
    };
#pragma unroll
    for (int f = 0; f < KEPT; f++) {
        if (f * STRIDE < k) finish(kept[f], weights[f], f * STRIDE + 4 * threadIdx.x);
    }
    for (int first = NOT_KEPT; first < k; first += STRIDE) {
        const int i = first + 4 * threadIdx.x;
        const bool valid = i < k;
        finish(valid ? four(x, i) : float4(), valid ? four(weight, i) : float4(), i);
    }
}

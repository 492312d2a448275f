// Rows of float32 to quantized columns (columns.cuh), alone or behind an RMS norm.
#include "quantize.cuh"
#include "reductions.cuh"

constexpr int NORM_WARPS = 16;

// x[n, k] to n columns. Threads: four values each.
extern "C" __global__ void __launch_bounds__(256) quantize(const float* x, uint8_t* columns, int k, int n) {
    const int64_t i = 4 * (blockIdx.x * int64_t(blockDim.x) + threadIdx.x), total = int64_t(n) * k;
    const bool valid = i < total;
    const float4 v = valid ? *reinterpret_cast<const float4*>(x + i) : float4();
    quantize_four(v, columns + i / k * column_bytes(k), k, int(i % k), valid);
}

// x[n, k] / sqrt(mean(x^2) + eps) * weight[k] (Zhang and Sennrich 2019) to n columns, and to normed[n, k]
// where that is not null. Blocks [n].
extern "C" __global__ void __launch_bounds__(NORM_WARPS* WARP)
rms_norm_quantize(const float* x, const float* weight, float* normed, uint8_t* columns, int k, int n,
                  float eps) {
    if (blockIdx.x >= n) return;
    const int64_t begin = int64_t(blockIdx.x) * k;
    float squares = 0.0f;
    for (int i = 4 * threadIdx.x; i < k; i += 4 * NORM_WARPS * WARP) {
        const float4 v = *reinterpret_cast<const float4*>(x + begin + i);
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    const float scale = rsqrtf(block_reduce(squares, Sum(), 0.0f) / float(k) + eps);
    for (int first = 0; first < k; first += 4 * NORM_WARPS * WARP) {
        const int i = first + 4 * threadIdx.x;
        float4 v = {};
        if (i < k) {
            const float4 a = *reinterpret_cast<const float4*>(x + begin + i);
            const float4 w = *reinterpret_cast<const float4*>(weight + i);
            v = make_float4(a.x * scale * w.x, a.y * scale * w.y, a.z * scale * w.z, a.w * scale * w.w);
            if (normed) *reinterpret_cast<float4*>(normed + begin + i) = v;
        }
        quantize_four(v, columns + blockIdx.x * int64_t(column_bytes(k)), k, i, i < k);
    }
}

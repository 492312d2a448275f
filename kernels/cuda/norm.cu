// Norms of rows, or of the groups of a row: the host counts rows * groups, and all is rows here.
//
// A row is a block's, or a warp's when it is short: then a block has blockDim.y of them.
// Norm r of a launch is multiplied by row r % weight_rows of the weights: 1 where all are alike, the number
// of heads where each has its own. Weight and bias may be null.
#include "elements.cuh"
#include "ptx.cuh"
#include "reductions.cuh"

// So many vectors of a row are kept in a thread's registers; longer rows are read again.
constexpr int KEPT = 4;

DEVICE float row_sum(float v) { return blockDim.x == WARP ? warp_sum(v) : block_reduce(v, Sum(), 0.0f); }

// A thread's share of a row of `count` vectors.
template <class V> struct Share {
    const V* row;
    int count;
    V kept[KEPT];

    DEVICE Share(const V* row, int count) : row(row), count(count) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int i = threadIdx.x + k * blockDim.x;
            if (i < count) kept[k] = row[i];
        }
    }

    template <class F> DEVICE void each(F f) const {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int i = threadIdx.x + k * blockDim.x;
            if (i < count) f(kept[k], i);
        }
        for (int i = threadIdx.x + KEPT * blockDim.x; i < count; i += blockDim.x) f(row[i], i);
    }
};

// y = x / sqrt(mean(x^2) + eps) * weight + bias, of x less its mean where CENTRED.
template <bool CENTRED, class V>
DEVICE void normalize(const Share<V>& x, const V* weight, const V* bias, V* y, float width, float eps) {
    float mean = 0.0f, squares = 0.0f;
    if (CENTRED) {
        x.each([&](V v, int) { mean += sum_of(v); });
        mean = row_sum(mean) / width;
    }
    x.each([&](V v, int) {
        squares += sum_of(map([=](float a) { return (a - mean) * (a - mean); }, v));
    });
    const float scale = rsqrtf(row_sum(squares) / width + eps);
    x.each([&](V v, int i) {
        v = map([=](float a) { return (a - mean) * scale; }, v);
        if (weight) v = map([](float a, float w) { return a * w; }, v, weight[i]);
        if (bias) v = map([](float a, float b) { return a + b; }, v, bias[i]);
        y[i] = v;
    });
}

template <bool CENTRED, class V>
DEVICE void norm_row(const float* x, const float* weight, const float* bias, float* y, int row, int width,
                     int weight_rows, float eps) {
    const int64_t begin = int64_t(row) * width, of_weights = int64_t(row % weight_rows) * width;
    const Share<V> share(&at<V>(x, begin), width / int(sizeof(V) / sizeof(float)));
    normalize<CENTRED>(share, weight ? &at<V>(weight, of_weights) : nullptr,
                       bias ? &at<V>(bias, of_weights) : nullptr, &at<V>(y, begin), float(width), eps);
}

template <bool CENTRED>
DEVICE void norm(const float* x, const float* weight, const float* bias, float* y, int rows, int width,
                 int weight_rows, float eps) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    if (width % 4 == 0) {
        norm_row<CENTRED, float4>(x, weight, bias, y, row, width, weight_rows, eps);
    } else {
        norm_row<CENTRED, float>(x, weight, bias, y, row, width, weight_rows, eps);
    }
}

// y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019); y may be x.
extern "C" __global__ void __launch_bounds__(1024)
rms_norm(const float* x, const float* weight, float* y, int rows, int width, int weight_rows, float eps) {
    wait_for_previous();
    norm<false>(x, weight, nullptr, y, rows, width, weight_rows, eps);
}

// y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (Ba et al. 2016); y may be x.
extern "C" __global__ void __launch_bounds__(1024)
layer_norm(const float* x, const float* weight, const float* bias, float* y, int rows, int width,
           int weight_rows, float eps) {
    wait_for_previous();
    norm<true>(x, weight, bias, y, rows, width, weight_rows, eps);
}

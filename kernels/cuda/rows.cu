// Rows of float32: added, picked, spread to experts and put together again.
#include "elements.cuh"
#include "ptx.cuh"

// y += x.
extern "C" __global__ void add(const float* x, float* y, long long total) {
    wait_for_previous();
    map_elements(total, y, [](float a, float b) { return a + b; }, x, y);
}

// y[i] = x[which[i]] for n rows: those that want logits, or each pair's token. Blocks [n, pieces of a row].
template <class V> DEVICE void pick_row(const float* x, const int* which, float* y, int row, int width) {
    const int i = first_of_row<V>();
    if (i < width) at<V>(y, int64_t(row) * width + i) = at<V>(x, int64_t(which[row]) * width + i);
}

extern "C" __global__ void pick(const float* x, const int* which, float* y, int n, int width) {
    wait_for_previous();
    const int row = blockIdx.x;
    if (row >= n) return;
    if (width % 4 == 0) {
        pick_row<float4>(x, which, y, row, width);
    } else {
        pick_row<float>(x, which, y, row, width);
    }
}

// y[token] = the sum over its pairs, in their order, of weights[pair] * x[places[pair]], where a pair is
// token * used + choice. Blocks [n tokens, pieces of a row].
template <class V>
DEVICE void combine_row(const float* x, const float* weights, const int* places, float* y, int token,
                        int width, int used) {
    const int i = first_of_row<V>();
    if (i >= width) return;
    V sum{};
#pragma unroll 4
    for (int pair = token * used; pair < (token + 1) * used; pair++) {
        const float weight = weights[pair];
        const V v = at<V>(x, int64_t(places[pair]) * width + i);
        sum = map([=](float s, float a) { return s + weight * a; }, sum, v);
    }
    at<V>(y, int64_t(token) * width + i) = sum;
}

extern "C" __global__ void combine(const float* x, const float* weights, const int* places, float* y, int n,
                                   int width, int used) {
    wait_for_previous();
    const int token = blockIdx.x;
    if (token >= n) return;
    if (width % 4 == 0) {
        combine_row<float4>(x, weights, places, y, token, width, used);
    } else {
        combine_row<float>(x, weights, places, y, token, width, used);
    }
}

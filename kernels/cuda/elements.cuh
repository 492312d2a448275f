// Element by element: code that is written once for single floats and for four of them at a time.
#pragma once
#include "common.cuh"

// f of the elements of vectors, or of floats: the sum of a and b is map(a, b) with f(x, y) = x + y.
template <class F, class... Rest> DEVICE float map(F f, float a, Rest... rest) { return f(a, rest...); }
template <class F, class... Rest> DEVICE float4 map(F f, float4 a, Rest... rest) {
    return make_float4(f(a.x, rest.x...), f(a.y, rest.y...), f(a.z, rest.z...), f(a.w, rest.w...));
}

DEVICE float sum_of(float v) { return v; }
DEVICE float sum_of(float4 v) { return (v.x + v.y) + (v.z + v.w); }

// The vector that begins at p[i].
template <class V> DEVICE V& at(float* p, int64_t i) { return *reinterpret_cast<V*>(p + i); }
template <class V> DEVICE const V& at(const float* p, int64_t i) {
    return *reinterpret_cast<const V*>(p + i);
}

// The first of this thread's four elements, of as many as there are threads times four.
DEVICE int64_t first_element() { return 4 * (blockIdx.x * int64_t(blockDim.x) + threadIdx.x); }

// The first of this thread's elements of a row that blockIdx.y and threadIdx.x share.
template <class V> DEVICE int first_of_row() {
    return (blockIdx.y * blockDim.x + threadIdx.x) * int(sizeof(V) / sizeof(float));
}

// y[i] = f(x[i], ...) for `total` elements: four a thread, and what is left at the end one by one.
template <class F, class... Float> DEVICE void map_elements(int64_t total, float* y, F f, const Float*... x) {
    int64_t i = first_element();
    if (i + 4 <= total) {
        at<float4>(y, i) = map(f, at<float4>(x, i)...);
    } else {
        for (; i < total; i++) y[i] = f(x[i]...);
    }
}

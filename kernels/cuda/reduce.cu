// Sums over devices: what each of them sent, added in the order given, so that all have the same bits.
//
// A sum takes up to PLACES places; where there are more, the first ones' sum is the first place of the next.
// bf16 halves what goes over the wire: then all devices add the rounded parts, their own as well.
#include "elements.cuh"
#include "ptx.cuh"

constexpr int PLACES = 8;

DEVICE float from_bf16(uint16_t v) { return __uint_as_float(uint32_t(v) << 16); }

DEVICE uint16_t to_bf16(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }

DEVICE void load(const float* p, int64_t i, float& v) { v = p[i]; }
DEVICE void load(const float* p, int64_t i, float4& v) { v = at<float4>(p, i); }
DEVICE void load(const uint16_t* p, int64_t i, float& v) { v = from_bf16(p[i]); }
DEVICE void load(const uint16_t* p, int64_t i, float4& v) {
    const ushort4 h = *reinterpret_cast<const ushort4*>(p + i);
    v = make_float4(from_bf16(h.x), from_bf16(h.y), from_bf16(h.z), from_bf16(h.w));
}

template <class V, class T>
DEVICE void sum_at(const T* const (&p)[PLACES], int places, float* y, int64_t i) {
    V sum, parts[PLACES];
    load(p[0], i, sum);
#pragma unroll
    for (int k = 1; k < PLACES; k++) {  // all are on their way before the first is needed
        if (k < places) load(p[k], i, parts[k]);
    }
#pragma unroll
    for (int k = 1; k < PLACES; k++) {
        if (k < places) sum = map([](float a, float b) { return a + b; }, sum, parts[k]);
    }
    at<V>(y, i) = sum;
}

template <class T> DEVICE void sum_places(const T* const (&p)[PLACES], int places, float* y, int64_t total) {
    int64_t i = first_element();
    if (i + 4 <= total) {
        sum_at<float4>(p, places, y, i);
    } else {
        for (; i < total; i++) sum_at<float>(p, places, y, i);
    }
}

// y = p0 + p1 + ..., the first `places` of them, in this order; y may be any of them.
extern "C" __global__ void sum(const float* p0, const float* p1, const float* p2, const float* p3,
                               const float* p4, const float* p5, const float* p6, const float* p7, int places,
                               float* y, long long total) {
    wait_for_previous();
    const float* const p[PLACES] = {p0, p1, p2, p3, p4, p5, p6, p7};
    sum_places(p, places, y, total);
}

// The same of bf16 to float32; y is other memory.
extern "C" __global__ void sum_bf16(const uint16_t* p0, const uint16_t* p1, const uint16_t* p2,
                                    const uint16_t* p3, const uint16_t* p4, const uint16_t* p5,
                                    const uint16_t* p6, const uint16_t* p7, int places, float* y,
                                    long long total) {
    wait_for_previous();
    const uint16_t* const p[PLACES] = {p0, p1, p2, p3, p4, p5, p6, p7};
    sum_places(p, places, y, total);
}

// float32 to bf16, for the wire.
extern "C" __global__ void narrow(const float* x, uint16_t* y, long long total) {
    wait_for_previous();
    int64_t i = first_element();
    if (i + 4 <= total) {
        const float4 v = at<float4>(x, i);
        const ushort4 h = make_ushort4(to_bf16(v.x), to_bf16(v.y), to_bf16(v.z), to_bf16(v.w));
        *reinterpret_cast<ushort4*>(y + i) = h;
    } else {
        for (; i < total; i++) y[i] = to_bf16(x[i]);
    }
}

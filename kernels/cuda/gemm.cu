// What is done around a product of cuBLAS: rows of float32 become float16, and what it leaves is put right.
//
// float16 ends at 65504, and below 2^-14 it loses bits: activations may be there. So a row whose largest
// value is out of a range that is safe goes times a power of two, by which its product, in float32, is
// divided again.
//
// A row of halves has k values and, behind them, 16 bytes that begin with the float that its product is to be
// multiplied with; it begins where 16 bytes do.
#include "elements.cuh"
#include "halves.cuh"
#include "reductions.cuh"

constexpr int THREADS = 256;
constexpr int SMALLEST = -4, LARGEST = 14;  // exponents of the largest value of a row that goes as it is
constexpr int FLOAT_BIAS = 127;

// Where the float lies, in halves; and how far rows are apart.
DEVICE int scale_at(int k) { return (k + 7) / 8 * 8; }
DEVICE int halves_stride(int k) { return scale_at(k) + 8; }

DEVICE float power_of_two(int exponent) { return __int_as_float((exponent + FLOAT_BIAS) << 23); }

// The exponent of what a row is multiplied with. A row with what is no number goes as it is: nothing mends
// it.
DEVICE int shift_for(float largest) {
    const int exponent = (__float_as_int(largest) >> 23) - FLOAT_BIAS;
    if (exponent > FLOAT_BIAS || (SMALLEST <= exponent && exponent <= LARGEST)) return 0;
    return min(LARGEST - exponent, FLOAT_BIAS - 1);
}

DEVICE float largest_of(float v) { return fabsf(v); }
DEVICE float largest_of(const float4& v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

DEVICE void store(uint16_t* to, float v) { *to = __half_as_ushort(__float2half_rn(v)); }
DEVICE void store(uint16_t* to, const float4& v) {
    *reinterpret_cast<uint2*>(to) = make_uint2(Half::pack(v.x, v.y), Half::pack(v.z, v.w));
}

template <class V> DEVICE void row_to_halves(const float* x, uint16_t* halves, int k) {
    constexpr int VALUES = sizeof(V) / sizeof(float);
    float largest = 0.0f;
    for (int i = VALUES * threadIdx.x; i < k; i += VALUES * THREADS) {
        largest = fmaxf(largest, largest_of(at<V>(x, i)));
    }
    const int shift = shift_for(block_reduce(largest, Largest(), 0.0f));
    const float scale = power_of_two(shift);
    for (int i = VALUES * threadIdx.x; i < k; i += VALUES * THREADS) {
        store(halves + i, map([=](float v) { return v * scale; }, at<V>(x, i)));
    }
    if (threadIdx.x == 0) *reinterpret_cast<float*>(halves + scale_at(k)) = power_of_two(-shift);
}

// x[n, k] to n rows of halves. Blocks [n].
extern "C" __global__ void __launch_bounds__(THREADS)
to_halves(const float* x, uint16_t* halves, int k, int n) {
    wait_for_previous();
    const int row = blockIdx.x;
    if (row >= n) return;
    x += int64_t(row) * k, halves += int64_t(row) * halves_stride(k);
    if (k % 4 == 0) {
        row_to_halves<float4>(x, halves, k);
    } else {
        row_to_halves<float>(x, halves, k);
    }
}

template <class V>
DEVICE void finish_row(float* y, float scale, const float* bias, float* residual, int width) {
    const int i = first_of_row<V>();
    if (i >= width) return;
    V v = map([=](float a) { return a * scale; }, at<V>(y, i));
    const auto plus = [](float a, float b) { return a + b; };
    if (bias) v = map(plus, v, at<V>(bias, i));
    if (residual) v = map(plus, v, at<V>(residual, i));
    at<V>(residual ? residual : y, i) = v;
}

// What a product of x's halves left in y[n, width] is multiplied with its rows' floats, then bias[width] is
// added, which may be null. Where residual is not null, it is added to that, and y is not written. Rows that
// are right as they are are left alone: the most. Blocks [n, pieces of a row].
extern "C" __global__ void finish(float* y, const uint16_t* halves, const float* bias, float* residual, int k,
                                  int n, int width) {
    wait_for_previous();
    const int row = blockIdx.x;
    if (row >= n) return;
    const int64_t begin = int64_t(row) * width;
    const uint16_t* of_row = halves + int64_t(row) * halves_stride(k);
    const float scale = *reinterpret_cast<const float*>(of_row + scale_at(k));
    if (scale == 1.0f && !bias && !residual) return;
    float* onto = residual ? residual + begin : nullptr;
    if (width % 4 == 0) {
        finish_row<float4>(y + begin, scale, bias, onto, width);
    } else {
        finish_row<float>(y + begin, scale, bias, onto, width);
    }
}

// What every kernel needs: types, and sums and maxima over a warp. For blocks see reductions.cuh.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef __CUDACC_RTC__  // NVRTC has no standard headers
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#endif

#define DEVICE __device__ __forceinline__

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

DEVICE float infinity() { return __int_as_float(0x7f800000); }

DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Over WIDTH neighbouring lanes; all of them get the result.
template <int WIDTH = WARP, typename T> DEVICE T warp_sum(T value) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

template <int WIDTH = WARP> DEVICE float warp_max(float value) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

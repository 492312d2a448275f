// Pairs of 16-bit floats, as tensor cores multiply them: a register has two, the first in its low half.
//
// One such float has 11 bits (Half) or 8 (Bfloat). Where a float32 must keep more it is split into SPLITS of
// them, the first one the largest: 22 bits or 24.
#pragma once
#include "ptx.cuh"

struct Half {
    static constexpr int SPLITS = 2;
    DEVICE static uint32_t pack(float a, float b) {
        const half2 pair = __floats2half2_rn(a, b);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
    DEVICE static float2 unpack(uint32_t pair) {
        return __half22float2(*reinterpret_cast<const half2*>(&pair));
    }
    DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_m16n8k16_f16(d, a, b);
    }
};

#if __CUDA_ARCH__ >= 800
struct Bfloat {
    static constexpr int SPLITS = 3;
    DEVICE static uint32_t pack(float a, float b) {
        const nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
    DEVICE static float2 unpack(uint32_t pair) {
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }
    DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_m16n8k16_bf16(d, a, b);
    }
};
#endif

template <class Part, int COUNT> DEVICE void split(float a, float b, uint32_t (&parts)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        parts[i] = Part::pack(a, b);
        const float2 kept = Part::unpack(parts[i]);
        a -= kept.x, b -= kept.y;
    }
}

// Of two pairs the first values, and the second ones.
DEVICE uint32_t firsts(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
DEVICE uint32_t seconds(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// Half and bfloat16. Every operation rounds, as on a card.
#pragma once
#include "floats.h"

namespace emu {

inline uint16_t half_bits(float f) {
    uint32_t x = bits<uint32_t>(f);
    const uint32_t sign = x >> 16 & 0x8000, magnitude = x & 0x7fffffff;
    if (magnitude >= 0x47800000) return uint16_t(sign | (magnitude > 0x7f800000 ? 0x7fff : 0x7c00));
    if (magnitude < 0x38800000)  // a subnormal: adding 0.5 puts its last bit in the place of a float's
        return uint16_t(sign | (bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000));
    return uint16_t(sign | (magnitude + 0xc8000fff + (magnitude >> 13 & 1)) >> 13);
}
inline float half_value(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 0) return bits<float>(bits<uint32_t>(float(mantissa) * 0x1p-24f) | sign);
    return bits<float>(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}
inline uint16_t bfloat16_bits(float f) {
    const uint32_t x = bits<uint32_t>(f);
    return (x & 0x7fffffff) > 0x7f800000 ? 0x7fff : uint16_t((x + 0x7fff + (x >> 16 & 1)) >> 16);
}
inline float bfloat16_value(uint16_t b) { return bits<float>(uint32_t(b) << 16); }

// a * b + c of halves: double has room for all bits of the product and, of the sum, for those that count.
inline float multiply_add(float a, float b, float c) { return float(double(a) * double(b) + double(c)); }

}  // namespace emu

#define EMU_HALF(H, H2, TO, FROM)                                                                  \
    struct H {                                                                                     \
        unsigned short x;                                                                          \
        H() = default;                                                                             \
        H(float f) : x(emu::TO(f)) {}                                                              \
        H(double f) : x(emu::TO(float(f))) {}                                                      \
        H(int f) : x(emu::TO(float(f))) {}                                                         \
        operator float() const { return emu::FROM(x); }                                            \
        H& operator+=(H o) { return *this = H(float(*this) + float(o)); }                          \
        H& operator-=(H o) { return *this = H(float(*this) - float(o)); }                          \
        H& operator*=(H o) { return *this = H(float(*this) * float(o)); }                          \
    };                                                                                             \
    struct __attribute__((aligned(4))) H2 {                                                        \
        H x, y;                                                                                    \
    };                                                                                             \
    inline H operator+(H a, H b) { return H(float(a) + float(b)); }                                \
    inline H operator-(H a, H b) { return H(float(a) - float(b)); }                                \
    inline H operator*(H a, H b) { return H(float(a) * float(b)); }                                \
    inline H operator/(H a, H b) { return H(float(a) / float(b)); }                                \
    inline H operator-(H a) {                                                                      \
        a.x ^= 0x8000;                                                                             \
        return a;                                                                                  \
    }                                                                                              \
    inline H __hadd(H a, H b) { return a + b; }                                                    \
    inline H __hsub(H a, H b) { return a - b; }                                                    \
    inline H __hmul(H a, H b) { return a * b; }                                                    \
    inline H __hdiv(H a, H b) { return a / b; }                                                    \
    inline H __hfma(H a, H b, H c) { return H(emu::multiply_add(float(a), float(b), float(c))); }  \
    inline H __hmax(H a, H b) { return H(fmaxf(float(a), float(b))); }                             \
    inline H __hmin(H a, H b) { return H(fminf(float(a), float(b))); }                             \
    inline H2 __hadd2(H2 a, H2 b) { return {a.x + b.x, a.y + b.y}; }                               \
    inline H2 __hsub2(H2 a, H2 b) { return {a.x - b.x, a.y - b.y}; }                               \
    inline H2 __hmul2(H2 a, H2 b) { return {a.x * b.x, a.y * b.y}; }                               \
    inline H2 __hfma2(H2 a, H2 b, H2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
    inline H2 __hmax2(H2 a, H2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                 \
    inline float __low2float(H2 a) { return float(a.x); }                                          \
    inline float __high2float(H2 a) { return float(a.y); }
EMU_HALF(__half, __half2, half_bits, half_value)
EMU_HALF(__nv_bfloat16, __nv_bfloat162, bfloat16_bits, bfloat16_value)
#undef EMU_HALF
typedef __half half;
typedef __half2 half2;
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline __half __float2half(float f) { return __half(f); }
inline __half __float2half_rn(float f) { return __half(f); }
inline float __half2float(__half h) { return float(h); }
inline float2 __half22float2(__half2 h) { return {float(h.x), float(h.y)}; }
inline __half2 __float22half2_rn(float2 f) { return {__half(f.x), __half(f.y)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float2half2_rn(float a) { return {__half(a), __half(a)}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 make_half2(__half a, __half b) { return {a, b}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
inline unsigned short __half_as_ushort(__half h) { return h.x; }
inline __half __ushort_as_half(unsigned short u) { return emu::bits<__half>(u); }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline float __bfloat162float(__nv_bfloat16 b) { return float(b); }
inline float2 __bfloat1622float2(__nv_bfloat162 b) { return {float(b.x), float(b.y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 f) { return {__nv_bfloat16(f.x), __nv_bfloat16(f.y)}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return emu::bits<__nv_bfloat16>(u); }

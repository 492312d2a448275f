// Floating-point intrinsics, bit casts and cached loads. Those that approximate on a card are exact here.
#pragma once
#include "types.h"

inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float exp10f(float x) { return powf(10.0f, x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline void __sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

// No multiply-add is made of these, here as there.
__attribute__((noinline)) inline float __fmul_rn(float a, float b) { return a * b; }
__attribute__((noinline)) inline float __fadd_rn(float a, float b) { return a + b; }
__attribute__((noinline)) inline float __fsub_rn(float a, float b) { return a - b; }

namespace emu {
inline int to_int(float a) {  // as the hardware: to the nearest end of the range, NaN to 0
    return a != a ? 0 : a >= 2147483648.0f ? INT32_MAX : a < -2147483648.0f ? INT32_MIN : int(a);
}
inline unsigned to_unsigned(float a) {
    return !(a > 0.0f) ? 0 : a >= 4294967296.0f ? UINT32_MAX : unsigned(a);
}
}  // namespace emu
inline int __float2int_rn(float a) { return emu::to_int(rintf(a)); }
inline int __float2int_rz(float a) { return emu::to_int(a); }
inline int __float2int_rd(float a) { return emu::to_int(floorf(a)); }
inline int __float2int_ru(float a) { return emu::to_int(ceilf(a)); }
inline unsigned __float2uint_rn(float a) { return emu::to_unsigned(rintf(a)); }
inline float __int2float_rn(int a) { return float(a); }
inline float __uint2float_rn(unsigned a) { return float(a); }

namespace emu {
template <class To, class From> To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace emu
inline int __float_as_int(float a) { return emu::bits<int>(a); }
inline unsigned __float_as_uint(float a) { return emu::bits<unsigned>(a); }
inline float __int_as_float(int a) { return emu::bits<float>(a); }
inline float __uint_as_float(unsigned a) { return emu::bits<float>(a); }

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldlu(const T* p) { return *p; }
template <class T> void __stcg(T* p, T v) { *p = v; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T> void __stwt(T* p, T v) { *p = v; }

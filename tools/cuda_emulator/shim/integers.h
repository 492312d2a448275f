// Integer intrinsics.
#pragma once
#include "types.h"

namespace emu {

inline int byte_of(unsigned word, int i) { return int8_t(word >> 8 * i); }

template <class F> unsigned each_byte(unsigned a, unsigned b, F f) {
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= unsigned(uint8_t(f(byte_of(a, i), byte_of(b, i)))) << 8 * i;
    return result;
}

inline int saturated(int v) { return v < -128 ? -128 : v > 127 ? 127 : v; }

}  // namespace emu

inline int __dp4a(int a, int b, int c) {
    unsigned sum = c;  // wraps, as the hardware's
    for (int i = 0; i < 4; i++) sum += unsigned(emu::byte_of(a, i) * emu::byte_of(b, i));
    return int(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
    return c;
}

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __brev(unsigned v) {
    unsigned result = 0;
    for (int i = 0; i < 32; i++) result |= (v >> i & 1) << (31 - i);
    return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned choice = selector >> 4 * i & 7;  // the intrinsic has no use for the fourth bit
        result |= unsigned(bytes >> 8 * choice & 255) << 8 * i;
    }
    return result;
}

inline unsigned __vadd4(unsigned a, unsigned b) {
    return emu::each_byte(a, b, [](int x, int y) { return x + y; });
}
inline unsigned __vsub4(unsigned a, unsigned b) {
    return emu::each_byte(a, b, [](int x, int y) { return x - y; });
}
inline unsigned __vaddss4(unsigned a, unsigned b) {
    return emu::each_byte(a, b, [](int x, int y) { return emu::saturated(x + y); });
}
inline unsigned __vsubss4(unsigned a, unsigned b) {
    return emu::each_byte(a, b, [](int x, int y) { return emu::saturated(x - y); });
}
inline unsigned __vcmpeq4(unsigned a, unsigned b) {
    return emu::each_byte(a, b, [](int x, int y) { return x == y ? 255 : 0; });
}
inline unsigned __vcmpne4(unsigned a, unsigned b) {
    return emu::each_byte(a, b, [](int x, int y) { return x != y ? 255 : 0; });
}

#define EMU_MIN_MAX(T)                               \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX

// Vector types.
#pragma once
// C's own header: what C++ adds to it takes the compiler longer than most kernels do.
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <math.h>
#undef _GLIBCXX_INCLUDE_NEXT_C_HEADERS

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define EMU_VECTOR(T, NAME, ALIGN2, ALIGN4)                                      \
    struct __attribute__((aligned(ALIGN2))) NAME##2 { T x, y; };                 \
    struct NAME##3 { T x, y, z; };                                               \
    struct __attribute__((aligned(ALIGN4))) NAME##4 { T x, y, z, w; };           \
    inline constexpr NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }         \
    inline constexpr NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; } \
    inline constexpr NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR(signed char, char, 2, 4)
EMU_VECTOR(unsigned char, uchar, 2, 4)
EMU_VECTOR(short, short, 4, 8)
EMU_VECTOR(unsigned short, ushort, 4, 8)
EMU_VECTOR(int, int, 8, 16)
EMU_VECTOR(unsigned int, uint, 8, 16)
EMU_VECTOR(long long, longlong, 16, 16)
EMU_VECTOR(float, float, 8, 16)
EMU_VECTOR(double, double, 16, 16)
#undef EMU_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

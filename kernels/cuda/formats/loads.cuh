// How bytes of blocks come into registers. Blocks lie as in the file, and many formats align theirs to 2
// bytes, or to none: what is loaded then are the whole aligned words of 4 bytes around them, which are put
// together in registers. So a load may take some bytes before and behind a row, but never a word, or 16
// aligned bytes, that has none of its own: a matrix must begin and its memory end at a multiple of 16 bytes.
#pragma once
#include "../common.cuh"

DEVICE float half_of(uint32_t bits) { return __half2float(__ushort_as_half(uint16_t(bits))); }

DEVICE uint32_t load_16(const uint8_t* p) { return __ldg(reinterpret_cast<const uint16_t*>(p)); }

// 4 bytes from an address that is aligned to 2.
DEVICE uint32_t load_2x16(const uint8_t* p) { return load_16(p) | load_16(p + 2) << 16; }

// Words from an address that is aligned to 4, to 8, to 16 bytes.
template <int N> DEVICE void load_32(const uint8_t* p, uint32_t (&words)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) words[i] = __ldg(reinterpret_cast<const uint32_t*>(p) + i);
}

template <int N> DEVICE void load_64(const uint8_t* p, uint32_t (&words)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        const uint2 v = __ldg(reinterpret_cast<const uint2*>(p + 4 * i));
        words[i] = v.x, words[i + 1] = v.y;
    }
}

template <int N> DEVICE void load_128(const uint8_t* p, uint32_t (&words)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(p + 4 * i));
        words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
    }
}

// N aligned words, the first of which holds the first byte at an address.
template <int N> struct Words {
    uint32_t words[N];
    uint32_t select;  // for __byte_perm: the four bytes at the address, of the first two words

    DEVICE explicit Words() {}

    DEVICE explicit Words(const uint8_t* p) {
        const uint32_t before = reinterpret_cast<uint64_t>(p) % 4;
        const uint32_t* aligned = reinterpret_cast<const uint32_t*>(p - before);
        select = 0x3210 + 0x1111 * before;
#pragma unroll
        for (int i = 0; i < N; i++) words[i] = __ldg(aligned + i);
    }

    // The 4 bytes that begin `byte` behind the address, which is at most 4 - byte % 4 over a multiple of 4.
    DEVICE uint32_t at(int byte) const {
        return __byte_perm(words[byte / 4], words[byte / 4 + 1], select + 0x1111 * (byte % 4));
    }
};

// The words of 16 bytes at any address, in two loads of 16 aligned bytes: where the lanes of a warp are far
// from each other, a load takes as long as it touches cache lines, however little of each.
struct Wide {
    uint32_t words[8];

    DEVICE explicit Wide() {}

    // before: the address % 16.
    DEVICE explicit Wide(const uint8_t* p, uint32_t before) {
        const uint4 a = __ldg(reinterpret_cast<const uint4*>(p - before));
        const uint4 b = __ldg(reinterpret_cast<const uint4*>(p - before + (before ? 16 : 0)));
        words[0] = a.x, words[1] = a.y, words[2] = a.z, words[3] = a.w;
        words[4] = b.x, words[5] = b.y, words[6] = b.z, words[7] = b.w;
    }

    // The 16 bytes.
    DEVICE void to(uint32_t before, uint32_t (&bytes)[4]) const {
        uint32_t w[6], v[5];
#pragma unroll
        for (int i = 0; i < 6; i++) w[i] = before & 8 ? words[i + 2] : words[i];
#pragma unroll
        for (int i = 0; i < 5; i++) v[i] = before & 4 ? w[i + 1] : w[i];
#pragma unroll
        for (int i = 0; i < 4; i++) bytes[i] = __byte_perm(v[i], v[i + 1], 0x3210 + 0x1111 * (before % 4));
    }
};

// The cells of the KV cache: a row is the key or the value of one head at one position.
//
// Rows are padded with zeros to whole blocks of 32 values, and lie as [page, head, position in page]. The
// rows of one page and head are a tile:
//   f32, f16, bf16  row after row
//   q8_0            the bytes, row after row; then the scales (halves) as [block][position], so that those of
//                   two neighbouring positions are in one register
// A tile of q8_0 has as many bytes as GGUF's blocks would have, but its rows are aligned to 32 bytes.
#pragma once
#include "halves.cuh"

constexpr int PAGE = 64;   // positions
constexpr int BLOCK = 32;  // values

DEVICE constexpr int padded(int dim) { return ceil_div(dim, BLOCK) * BLOCK; }

// A few 32-bit words that are loaded and stored at once.
template <int COUNT> struct alignas(COUNT < 4 ? 4 * COUNT : 16) Words {
    uint32_t word[COUNT];
};

// The kinds of cells. N values of a row are Words<N * BITS / 32>; `unpack` makes PARTS times N / 2 pairs of
// them whose sum they are, times the scale of their block where SCALED; `pack` turns four values into words.
// COPIED: words are the pairs.
namespace cells {

// What a half float holds; more is cut off.
DEVICE float in_range(float x) { return fminf(fmaxf(x, -65504.0f), 65504.0f); }

struct F16 {
    typedef Half Part;
    static constexpr int BITS = 16, PARTS = 1;
    static constexpr bool SCALED = false, COPIED = true;

    template <int N> DEVICE static void unpack(const Words<N>& words, uint32_t (&parts)[1][N]) {
#pragma unroll
        for (int i = 0; i < N; i++) parts[0][i] = words.word[i];
    }
    DEVICE static Words<2> pack(float4 x) { return {Half::pack(x.x, x.y), Half::pack(x.z, x.w)}; }
};

struct BF16 {
    static constexpr int BITS = 16, PARTS = 1;
    static constexpr bool SCALED = false;

#if __CUDA_ARCH__ >= 800
    typedef Bfloat Part;
    static constexpr bool COPIED = true;
    template <int N> DEVICE static void unpack(const Words<N>& words, uint32_t (&parts)[1][N]) {
        F16::unpack(words, parts);
    }
#else
    typedef Half Part;  // Turing's tensor cores have no others: beyond 65504 is cut off, bits below 2^-24 too
    static constexpr bool COPIED = false;
    template <int N> DEVICE static void unpack(const Words<N>& words, uint32_t (&parts)[1][N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float first = __uint_as_float(words.word[i] << 16);
            const float second = __uint_as_float(words.word[i] & 0xffff0000u);
            parts[0][i] = Half::pack(in_range(first), in_range(second));
        }
    }
#endif
    DEVICE static uint32_t pack(float a, float b) {
        const nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
    DEVICE static Words<2> pack(float4 x) { return {pack(x.x, x.y), pack(x.z, x.w)}; }
};

struct F32 {
    typedef Half Part;
    static constexpr int BITS = 32, PARTS = 2;
    static constexpr bool SCALED = false;

    template <int N> DEVICE static void unpack(const Words<N>& words, uint32_t (&parts)[2][N / 2]) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float first = __uint_as_float(words.word[2 * i]);
            const float second = __uint_as_float(words.word[2 * i + 1]);
            uint32_t pair[2];
            split<Half>(in_range(first), in_range(second), pair);
            parts[0][i] = pair[0], parts[1][i] = pair[1];
        }
    }
    DEVICE static Words<4> pack(float4 x) {
        return {__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z), __float_as_uint(x.w)};
    }
};

struct Q8_0 {
    typedef Half Part;
    static constexpr int BITS = 8, PARTS = 1;
    static constexpr bool SCALED = true, COPIED = false;

    // A byte b becomes the half 1024 + 128 + b, whose low bits it is, and then b.
    DEVICE static uint32_t pair(uint32_t shifted, uint32_t selector) {
        const uint32_t bits = __byte_perm(shifted, 0x64646464u, selector);
        const half2 b = __hsub2(*reinterpret_cast<const half2*>(&bits), __float2half2_rn(1152.0f));
        return *reinterpret_cast<const uint32_t*>(&b);
    }
    template <int N> DEVICE static void unpack(const Words<N>& words, uint32_t (&parts)[1][2 * N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const uint32_t shifted = words.word[i] ^ 0x80808080u;
            parts[0][2 * i] = pair(shifted, 0x4140), parts[0][2 * i + 1] = pair(shifted, 0x4342);
        }
    }
    // x: already divided by the scale.
    DEVICE static Words<1> pack(float4 x) {
        const uint32_t low = __byte_perm(__float2int_rn(x.x), __float2int_rn(x.y), 0x0040);
        return {__byte_perm(low, __byte_perm(__float2int_rn(x.z), __float2int_rn(x.w), 0x0040), 0x5410)};
    }
};

}  // namespace cells

template <class Kind> DEVICE constexpr int row_bytes(int width) { return width * Kind::BITS / 8; }

template <class Kind> DEVICE constexpr int tile_bytes(int width) {
    return PAGE * (row_bytes<Kind>(width) + (Kind::SCALED ? width / BLOCK * 2 : 0));
}

// The rows of one page and head, of WIDTH values (padded).
template <class Kind, int WIDTH> struct Tile {
    const uint8_t* rows;

    DEVICE Tile(const uint8_t* cells, int page, int heads, int head)
        : rows(cells + (int64_t(page) * heads + head) * tile_bytes<Kind>(WIDTH)) {}

    // Ask for so many rows, from `first` on, by a warp.
    DEVICE void prefetch(int first, int count) const {
        constexpr int LINE = 128;
        const uint8_t* begin = rows + first * row_bytes<Kind>(WIDTH);
        for (int i = threadIdx.x % WARP * LINE; i < count * row_bytes<Kind>(WIDTH); i += WARP * LINE) {
            prefetch_l2(begin + i);
        }
    }

    // N values of a row, from `value` on.
    template <int N> DEVICE const Words<N * Kind::BITS / 32>& piece(int position, int value) const {
        const uint8_t* p = rows + position * row_bytes<Kind>(WIDTH) + value * Kind::BITS / 8;
        return *reinterpret_cast<const Words<N * Kind::BITS / 32>*>(p);
    }

    DEVICE const __half* scales(int block) const {
        return reinterpret_cast<const __half*>(rows + PAGE * row_bytes<Kind>(WIDTH)) + block * PAGE;
    }

    // The scales of a block at an even position and the next one.
    DEVICE float2 two_scales(int block, int position) const {
        return Half::unpack(*reinterpret_cast<const uint32_t*>(scales(block) + position));
    }

    // Eight values as 16-bit floats, less their scale.
    DEVICE uint4 halves(int position, int value) const {
        static_assert(Kind::PARTS == 1, "they would not be all of it");
        uint32_t parts[1][4];
        Kind::unpack(piece<8>(position, value), parts);
        return make_uint4(parts[0][0], parts[0][1], parts[0][2], parts[0][3]);
    }
};

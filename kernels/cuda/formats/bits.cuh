// Bits to bytes: what formats with a bit or a nibble a value share.
#pragma once
#include "../common.cuh"

// Bit i of the four lowest bits of `bits` to bit AT of byte i.
template <int AT> DEVICE uint32_t spread_bits(uint32_t bits) {
    return ((bits & 15) * (0x00204081u << AT)) & (0x01010101u << AT);
}

// Four bytes, none of which is 0: those whose bit is set are negated.
DEVICE uint32_t negate_bytes(uint32_t bytes, uint32_t bits) {
    const uint32_t ones = spread_bits<0>(bits);
    return (bytes ^ (ones * 0xff)) + ones;  // never carries from one byte to the next
}

// 16 bytes by nibbles: those of the low nibbles of a word's bytes, and those of the high ones.
struct Table {
    uint32_t words[4];

    // A selector of __byte_perm is four nibbles, of which three bits count: eight entries at a time.
    DEVICE uint32_t four(uint32_t nibbles) const {
        const uint32_t index = nibbles & 0x7777, upper = (nibbles & 0x8888) >> 1;
        const uint32_t first = __byte_perm(words[0], words[1], index);
        return __byte_perm(first, __byte_perm(words[2], words[3], index), 0x3210 | upper);
    }

    DEVICE void look_up(uint32_t nibbles, int& low, int& high) const {
        const uint32_t first = four(nibbles), second = four(nibbles >> 16);
        low = __byte_perm(first, second, 0x6420);
        high = __byte_perm(first, second, 0x7531);
    }
};

// The code book of an IQ1, IQ2 or IQ3 format: -DCODE_BOOK has its entries of 4 or 8 signed bytes, as words.
//
// The host takes it from the gguf package: see ggrun/kernels/code_books.py.
#pragma once
#include "bits.cuh"

__device__ alignas(8) const uint32_t CODE_BOOK_WORDS[] = {CODE_BOOK};

// Eight values: entry `index` of a book of eights, and two entries of a book of fours.
DEVICE uint2 entry_of_8(int index) { return __ldg(reinterpret_cast<const uint2*>(CODE_BOOK_WORDS) + index); }
DEVICE uint2 entries_of_4(int first, int second) {
    return make_uint2(__ldg(CODE_BOOK_WORDS + first), __ldg(CODE_BOOK_WORDS + second));
}

// Entries, of which those values are negated whose bit is set.
DEVICE void signed_entries(uint2 entries, uint32_t bits, int& low, int& high) {
    low = negate_bytes(entries.x, bits);
    high = negate_bytes(entries.y, bits >> 4);
}

// Eight bits of signs from seven: the eighth makes their number even.
DEVICE uint32_t even_signs(uint32_t bits) { return (bits & 127) | (__popc(bits & 127) & 1) << 7; }

// The weight formats: -DFORMAT=Q4_K names one of the structs below, which kernels know as Weights.
//
// A quantized format has
//   VALUES, BYTES  of a block; a row is whole blocks, rows lie one after the other
//   PER_SCALE      16 or 32: so many values share a scale and an offset
//   OFFSETS        whether there are any: where not, all are zero
//   group(row, g, q, scale, offset)
//                  values 32 g to 32 g + 31 of a row as 32 int8 in their order, four an int:
//                  value = scale[h] * q - offset[h], in the half h (16 values) that it is in
// and, for decoding, where a thread takes a unit at a time, in what order suits its bits best,
//   Unit, load(row, u)         the unit's bytes as they come from memory: only loads, as wide as can be
//   unpack(unit, u, Unpacked)  its PARTS times 16 values
//   chunk(u), STEP             the 16 values of a row that its first part is; the next part is STEP further
//
// q is not always what the file's documentation calls a quant: where half of the range is taken off, bits are
// put on top of a byte and its sign is turned. So q is a multiple of the value, and nothing has to be taken
// off.
//
// IQ1, IQ2 and IQ3 formats need -DCODE_BOOK: see formats/code_book.cuh.
//
// F32, F16 and BF16 have value(row, i), and unpack(words, values) for the UNIT values in 32 aligned bytes.
#pragma once
#include "formats/floats.cuh"
#include "formats/iq4_nl.cuh"
#include "formats/iq4_xs.cuh"
#include "formats/mxfp4.cuh"
#include "formats/q2_k.cuh"
#include "formats/q3_k.cuh"
#include "formats/q4_0.cuh"
#include "formats/q4_1.cuh"
#include "formats/q4_k.cuh"
#include "formats/q5_0.cuh"
#include "formats/q5_1.cuh"
#include "formats/q5_k.cuh"
#include "formats/q6_k.cuh"
#include "formats/q8_0.cuh"
#include "formats/tq1_0.cuh"
#include "formats/tq2_0.cuh"

#ifdef CODE_BOOK
#include "formats/iq1_m.cuh"
#include "formats/iq1_s.cuh"
#include "formats/iq2_s.cuh"
#include "formats/iq2_xs.cuh"
#include "formats/iq2_xxs.cuh"
#include "formats/iq3_s.cuh"
#include "formats/iq3_xxs.cuh"
#endif

using Weights = FORMAT;

template <class F> constexpr bool IS_FLOATS = F::VALUES == 1;

// The bytes of a row of k values, which is whole blocks.
template <class F> DEVICE int64_t row_bytes(int k) { return int64_t(k / F::VALUES) * F::BYTES; }

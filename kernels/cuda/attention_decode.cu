// Attention of single tokens over the KV cache: flash decoding.
//
// KEY_KIND, VALUE_KIND: of the cells; KEY_DIM, VALUE_DIM: values of a row; SOFT_CAP: whether there is one.
// variants: KEY_KIND=F16|BF16|F32|Q8_0 VALUE_KIND=F16|Q8_0|* KEY_DIM=128|* VALUE_DIM=128|*
//     SOFT_CAP=0|*
// variants: KEY_KIND=Q8_0 VALUE_KIND=F16|BF16|F32|Q8_0 KEY_DIM=256 VALUE_DIM=256 SOFT_CAP=1
// variants: KEY_KIND=F16|BF16 VALUE_KIND=F16|BF16 KEY_DIM=192 VALUE_DIM=128 SOFT_CAP=1
// variants: KEY_KIND=F16|BF16 VALUE_KIND=F16|BF16 KEY_DIM=64 VALUE_DIM=64 SOFT_CAP=0
//
// A block has one token, up to 8 heads that share keys and values, and a part of the pages; each of its 4
// warps takes 16 positions of every page. All products are m16n8k16, and need no shared memory: a product
// sums over positions or values in any order, so each lane loads what it has at hand in wide pieces. Rows 0-7
// of A are the first parts that queries (or weights) are split into, and rows 8-15 the second ones: one
// product has both, and the results of a head, which are a lane's, are added. A third part needs a second
// product.
//
// With g = lane / 4 and t = lane % 4, lane has
//   queries    of head g, the values 8 * t ... 8 * t + 7 of each block of 32 (A)
//   keys       of positions g and 8 + g, the same values (B)
//   scores     of head g, at positions 2 * t, 2 * t + 1 and 8 more (D), which as weights are A
//   values     of these positions, the values 4 * g ... 4 * g + 3 of each block (B)
//   sums       of head g, the values 8 * t ... 8 * t + 7 of each block (D)
//
// The block of a token and its heads that is done last combines the parts that all of them have left.
#include "attention.cuh"
#include "parts.cuh"
#include "quantize.cuh"

typedef cells::KEY_KIND Key;
typedef cells::VALUE_KIND Value;

constexpr int WARPS = 4, HEADS = 8, KEYS = PAGE / WARPS;
constexpr int KEY_WIDTH = padded(KEY_DIM), KEY_BLOCKS = KEY_WIDTH / BLOCK;
constexpr int VALUE_WIDTH = padded(VALUE_DIM), VALUE_BLOCKS = VALUE_WIDTH / BLOCK;

// So many blocks of a row are loaded at once: enough to be in flight, and registers do for the widest rows.
template <class Kind> DEVICE constexpr int chunk_of(int blocks) {
    return min_of(blocks, Kind::BITS == 32 ? 2 : 4);
}
constexpr int KEY_CHUNK = chunk_of<Key>(KEY_BLOCKS), VALUE_CHUNK = chunk_of<Value>(VALUE_BLOCKS);

typedef Words<8 * Key::BITS / 32> KeyPiece;
typedef Words<4 * Value::BITS / 32> ValuePiece;
typedef Tile<Key, KEY_WIDTH> KeyTile;
typedef Tile<Value, VALUE_WIDTH> ValueTile;

// Two parts of numbers are a fragment.
template <class Part> DEVICE constexpr int fragments_of() { return ceil_div(Part::SPLITS, 2); }
constexpr int QUERY_FRAGMENTS = fragments_of<Key::Part>(), WEIGHT_FRAGMENTS = fragments_of<Value::Part>();

// The queries of all heads, for two steps of 16 values a block: in shared memory, as ldmatrix takes them.
typedef uint32_t Queries[KEY_BLOCKS][2][QUERY_FRAGMENTS][4 * WARP];

// Each warp writes its share of the blocks. Returns what the scores of a lane's head are to be multiplied by.
DEVICE float write_queries(const float* row, float scale, Queries& queries) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, t = lane % 4;
    float x[KEY_BLOCKS][8], largest = 0.0f, back;
#pragma unroll
    for (int block = 0; block < KEY_BLOCKS; block++) {
        load_values<KEY_DIM>(row, block * BLOCK + 8 * t, x[block]);
#pragma unroll
        for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(x[block][i]));
    }
    const float by = into_range(warp_max<4>(largest), back);
#pragma unroll
    for (int block = 0; block < KEY_BLOCKS; block++) {
        if (block % WARPS != warp) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t parts[2 * QUERY_FRAGMENTS];
            split<Key::Part>(x[block][2 * i] * by, x[block][2 * i + 1] * by, parts);
#pragma unroll
            for (int part = 0; part < 2 * QUERY_FRAGMENTS; part++)
                queries[block][i / 2][part / 2][(i % 2 * 2 + part % 2) * WARP + lane] = parts[part];
        }
    }
    return scale * LOG2_E * back;
}

// Adds the products of a block of the queries with 8 keys. D's columns are positions `pair` and the one after
// it.
DEVICE void add_products(const uint32_t (&queries)[2][QUERY_FRAGMENTS][4], int block, const KeyPiece& piece,
                         const KeyTile& keys, int pair, float (&sum)[4]) {
    uint32_t parts[Key::PARTS][4];
    Key::unpack(piece, parts);
    float of_block[4] = {};
    float(&d)[4] = Key::SCALED ? of_block : sum;
#pragma unroll
    for (int part = 0; part < Key::PARTS; part++) {
#pragma unroll
        for (int step = 0; step < 2; step++) {
            const uint32_t b[2] = {parts[part][2 * step], parts[part][2 * step + 1]};
#pragma unroll
            for (int i = QUERY_FRAGMENTS - 1; i >= 0; i--) Key::Part::mma(d, queries[step][i], b);
        }
    }
    if constexpr (Key::SCALED) {
        const float2 scales = keys.two_scales(block, pair);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += of_block[i] * (i % 2 ? scales.y : scales.x);
    }
}

DEVICE void weight_fragments(const float (&weights)[4], uint32_t (&a)[WEIGHT_FRAGMENTS][4]) {
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        uint32_t parts[2 * WEIGHT_FRAGMENTS];
        split<Value::Part>(weights[2 * pair], weights[2 * pair + 1], parts);
#pragma unroll
        for (int part = 0; part < 2 * WEIGHT_FRAGMENTS; part++)
            a[part / 2][2 * pair + part % 2] = parts[part];
    }
}

// The softmax of a lane's head over what its warp has seen.
struct State {
    float largest = NEVER, total = 0.0f, sums[VALUE_BLOCKS][8] = {};

    // Scores of a lane's positions to weights; what is returned is for the sums so far.
    DEVICE float weigh(float (&scores)[4]) {
        float most = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
        most = fmaxf(largest, warp_max<4>(most));
        const float rescale = exp2f(largest - most);
        largest = most, total *= rescale;
#pragma unroll
        for (int i = 0; i < 4; i++) total += scores[i] = exp2f(scores[i] - most + PEAK);
        return rescale;
    }

    // Adds the weighted values of a block: one product for each of a lane's four values.
    DEVICE void add(int block, float rescale, const float (&weights)[4], const ValuePiece (&rows)[4]) {
        uint32_t a[WEIGHT_FRAGMENTS][4], parts[4][Value::PARTS][2];
        weight_fragments(weights, a);
#pragma unroll
        for (int i = 0; i < 4; i++) Value::unpack(rows[i], parts[i]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float d[4] = {};
#pragma unroll
            for (int part = 0; part < Value::PARTS; part++) {
                uint32_t b[2];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const uint32_t even = parts[2 * r][part][i / 2], odd = parts[2 * r + 1][part][i / 2];
                    b[r] = i % 2 ? seconds(even, odd) : firsts(even, odd);
                }
#pragma unroll
                for (int j = WEIGHT_FRAGMENTS - 1; j >= 0; j--) Value::Part::mma(d, a[j], b);
            }
            sums[block][i] = sums[block][i] * rescale + (d[0] + d[2]);
            sums[block][4 + i] = sums[block][4 + i] * rescale + (d[1] + d[3]);
        }
    }
};

// A warp's 16 positions of a page: `row` is the first of them in the page. Those that are seen count.
struct Positions {
    int row, lane_pair;  // of a lane's first two positions
    bool seen[4];

    DEVICE Positions(int first, int t, Span span) : row(first % PAGE), lane_pair(2 * t) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int position = first + offset(i);
            seen[i] = position >= span.begin && position < span.end;
        }
    }
    DEVICE int offset(int i) const { return i / 2 * 8 + lane_pair + i % 2; }
    DEVICE int pair(int i) const { return row + 8 * i + lane_pair; }
};

// The scores of a lane's four positions.
DEVICE void score_page(const Attention& a, const Queries& queries, float factor, const KeyTile& keys,
                       const Positions& at, float (&scores)[4]) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    float sums[2][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < KEY_BLOCKS; chunk += KEY_CHUNK) {
        KeyPiece pieces[2][KEY_CHUNK];
#pragma unroll
        for (int block = chunk; block < min_of(chunk + KEY_CHUNK, KEY_BLOCKS); block++) {
#pragma unroll
            for (int i = 0; i < 2; i++)
                pieces[i][block - chunk] = keys.template piece<8>(at.row + 8 * i + g, block * BLOCK + 8 * t);
        }
#pragma unroll
        for (int block = chunk; block < min_of(chunk + KEY_CHUNK, KEY_BLOCKS); block++) {
            uint32_t fragments[2][QUERY_FRAGMENTS][4];
#pragma unroll
            for (int i = 0; i < 2 * QUERY_FRAGMENTS; i++) {
                const int step = i / QUERY_FRAGMENTS, fragment = i % QUERY_FRAGMENTS;
                ldmatrix_x4(fragments[step][fragment], queries[block][step][fragment] + 4 * lane);
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
                add_products(fragments, block, pieces[i][block - chunk], keys, at.pair(i), sums[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float(&sum)[4] = sums[i / 2];
        scores[i] = at.seen[i] ? a.score(sum[i % 2] + sum[2 + i % 2], factor) : NEVER;
    }
}

// Some blocks of the values of a lane's positions. What was never stored may be anything, infinite too.
typedef ValuePiece ValuePieces[VALUE_CHUNK][4];
DEVICE void load_values(const ValueTile& values, const Positions& at, int chunk, ValuePieces& pieces) {
    const int g = threadIdx.x % WARP / 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int block = chunk; block < min_of(chunk + VALUE_CHUNK, VALUE_BLOCKS); block++) {
            ValuePiece& piece = pieces[block - chunk][i];
            piece = {};
            if (at.seen[i]) piece = values.template piece<4>(at.row + at.offset(i), block * BLOCK + 4 * g);
        }
    }
}

// Weights times the scales of a block's values.
DEVICE void scale_weights(const ValueTile& values, const Positions& at, int block, float (&weights)[4]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float2 scales = values.two_scales(block, at.pair(i));
        weights[2 * i] = at.seen[2 * i] ? weights[2 * i] * scales.x : 0.0f;
        weights[2 * i + 1] = at.seen[2 * i + 1] ? weights[2 * i + 1] * scales.y : 0.0f;
    }
}

DEVICE void attend_page(const Attention& a, const Queries& queries, float factor, State& state, int page,
                        int kv_head, const Positions& at) {
    const KeyTile keys(a.keys, page, a.kv_heads, kv_head);
    const ValueTile values(a.values, page, a.kv_heads, kv_head);
    ValuePieces pieces;
    load_values(values, at, 0, pieces);  // comes while scores are computed
    float weights[4];
    score_page(a, queries, factor, keys, at, weights);
    const float rescale = state.weigh(weights);
#pragma unroll
    for (int block = 0; block < VALUE_BLOCKS; block++) {
        if (block > 0 && block % VALUE_CHUNK == 0) load_values(values, at, block, pieces);
        float scaled[4] = {weights[0], weights[1], weights[2], weights[3]};
        if constexpr (Value::SCALED) scale_weights(values, at, block, scaled);
        state.add(block, rescale, scaled, pieces[block % VALUE_CHUNK]);
    }
}

// The pages of a block.
DEVICE Span pages_of(Span seen) {
    return part_of({seen.begin / PAGE, (seen.end - 1) / PAGE + 1}, blockIdx.z, gridDim.z);
}

// Ask for the first pages of a block. Their numbers are the host's, and may be read before other kernels are
// done; what is in them may still have to be written.
DEVICE void prefetch_pages(const Attention& a, int token, int kv_head) {
#if __CUDA_ARCH__ >= 900  // others have nothing to wait for
    constexpr int PREFETCHED = 2;
    const int position = a.positions[token], *const table = a.table(a.sequences[token]);
    const int first = threadIdx.x / WARP * KEYS;
    const Span pages = pages_of({a.oldest(position), position + 1});
    for (int i = pages.begin; i < min(pages.begin + PREFETCHED, pages.end); i++) {
        KeyTile(a.keys, table[i], a.kv_heads, kv_head).prefetch(first, KEYS);
        ValueTile(a.values, table[i], a.kv_heads, kv_head).prefetch(first, KEYS);
    }
#endif
}

typedef float WarpSums[WARPS][HEADS][VALUE_WIDTH];
typedef float2 WarpStates[HEADS][WARPS];

// A head's parts as one: y, and its column where there are any. By a warp; a lane has one value, or four.
template <class V>
DEVICE void write_head(const Attention& a, uint8_t* columns, int token, int head, const Parts& parts) {
    constexpr int VALUES = sizeof(V) / sizeof(float);
    const int k = a.heads * VALUE_DIM;
    const float largest = parts.largest();
    for (int first = 0; first < VALUE_DIM; first += VALUES * WARP) {
        const int value = first + VALUES * (threadIdx.x % WARP), i = head * VALUE_DIM + value;
        V y = {};
        if (value < VALUE_DIM) {
            float total;
            const V sum = parts.sum<V>(value, largest, total);
            const float by = normalizer(largest, total, a.sinks, head);
            at<V>(a.y, int64_t(token) * k + i) = y = map([=](float v) { return v * by; }, sum);
        }
        if constexpr (VALUE_DIM % COLUMN_BLOCK == 0) {
            uint8_t* column = columns + int64_t(token) * column_bytes(k);
            if (columns) quantize_four(y, column, k, i, value < VALUE_DIM);
        }
    }
}

// What a block's warps have of a head: one of the parts of the context. By a warp.
template <class V> DEVICE void keep_part(const Attention& a, int64_t part, const Parts& warps) {
    constexpr int VALUES = sizeof(V) / sizeof(float);
    const float largest = warps.largest();
    for (int value = VALUES * (threadIdx.x % WARP); value < VALUE_DIM; value += VALUES * WARP) {
        float total;
        at<V>(a.sums, part * VALUE_DIM + value) = warps.sum<V>(value, largest, total);
        if (value == 0) a.states[part] = make_float2(largest, total);
    }
}

// All heads of a block. arrived: a counter for each token and tile of heads.
template <class V>
DEVICE void write_tile(const Attention& a, uint8_t* columns, unsigned* arrived, int token,
                       const HeadTile<HEADS>& tile, const WarpSums& sums, const WarpStates& states) {
    const int warp = threadIdx.x / WARP, parts = gridDim.z;
    for (int i = warp; i < tile.count; i += WARPS) {
        const Parts warps = {states[i], sums[0][i], WARPS, HEADS * VALUE_WIDTH};
        const int head = tile.first + i;
        if (parts == 1) write_head<V>(a, columns, token, head, warps);
        else keep_part<V>(a, (int64_t(token) * a.heads + head) * parts + blockIdx.z, warps);
    }
    if (parts == 1 || !comes_last(arrived + blockIdx.y * gridDim.x + blockIdx.x, parts)) return;
    for (int head = tile.first + warp; head < tile.first + tile.count; head += WARPS) {
        const int64_t first = (int64_t(token) * a.heads + head) * parts;
        const Parts all = {a.states + first, a.sums + first * VALUE_DIM, parts, VALUE_DIM};
        write_head<V>(a, columns, token, head, all);
    }
}

// columns[n], of heads * VALUE_DIM values, or null. arrived[tokens, kv_heads * tiles], with several parts:
// zeros, before and after. grid: [kv_heads * tiles of 8 heads, tokens, parts]
extern "C" __global__ void __launch_bounds__(WARPS * WARP, 2)
attention_decode(const float* q, float* y, float* sums, float2* states, const int* positions,
                 const int* sequences, const int* tables, const uint8_t* keys, const uint8_t* values,
                 const float* sinks, int n, int heads, int kv_heads, int table_stride, int window,
                 float scale, float cap, uint8_t* columns, unsigned* arrived) {
    const Attention a = {q,     y, sums,  states,   positions,    sequences, tables, keys, values,
                         sinks, n, heads, kv_heads, table_stride, window,    scale,  cap};
    __shared__ __align__(16) uint8_t memory[max_of(sizeof(Queries), sizeof(WarpSums))];
    __shared__ WarpStates warp_states;
    Queries& queries = *reinterpret_cast<Queries*>(memory);
    WarpSums& warp_sums = *reinterpret_cast<WarpSums*>(memory);  // after them
    const int token = blockIdx.y, warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    if (token >= n) return wait_for_previous();
    const HeadTile<HEADS> tile(a);
    prefetch_pages(a, token, tile.kv_head);
    wait_for_previous();
    const int64_t row = int64_t(token) * heads + tile.first;
    const float factor = write_queries(q + (row + min(g, tile.count - 1)) * KEY_DIM, scale, queries);
    const int position = positions[token], *const table = a.table(sequences[token]);
    const Span seen = {a.oldest(position), position + 1};
    const Span pages = pages_of(seen);
    State state;
    __syncthreads();
    for (int page = pages.begin; page < pages.end; page++) {
        const int first = page * PAGE + warp * KEYS;
        if (first >= seen.end || first + KEYS <= seen.begin) continue;
        attend_page(a, queries, factor, state, table[page], tile.kv_head, Positions(first, t, seen));
    }
    state.total = warp_sum<4>(state.total);
    __syncthreads();
    if (t == 0) warp_states[g][warp] = make_float2(state.largest, state.total);
#pragma unroll
    for (int block = 0; block < VALUE_BLOCKS; block++) {
#pragma unroll
        for (int i = 0; i < 8; i++) warp_sums[warp][g][block * BLOCK + 8 * t + i] = state.sums[block][i];
    }
    __syncthreads();
    if constexpr (VALUE_DIM % 4 == 0) {
        write_tile<float4>(a, columns, arrived, token, tile, warp_sums, warp_states);
    } else {
        write_tile<float>(a, columns, arrived, token, tile, warp_sums, warp_states);
    }
}

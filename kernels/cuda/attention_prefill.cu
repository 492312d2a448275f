// Attention of many tokens over the KV cache: flash attention (Dao 2023) with tensor cores.
//
// KEY_KIND, VALUE_KIND: of the cells, not F32; KEY_DIM, VALUE_DIM: values of a row; SOFT_CAP: whether there
// is one; BLOCK_ROWS: 16 for each warp of a block; STEP_KEYS: positions of a step, 16, 32 or 64.
// variants: KEY_KIND=F16|BF16|Q8_0|* VALUE_KIND=F16|* KEY_DIM=128|* VALUE_DIM=128|* SOFT_CAP=0|*
//     BLOCK_ROWS=64|* STEP_KEYS=32|*
// variants: KEY_KIND=F16|Q8_0 VALUE_KIND=F16 KEY_DIM=192 VALUE_DIM=128 SOFT_CAP=1 BLOCK_ROWS=32 STEP_KEYS=32
// variants: KEY_KIND=F16|BF16 VALUE_KIND=Q8_0 KEY_DIM=64 VALUE_DIM=64 SOFT_CAP=0 BLOCK_ROWS=64 STEP_KEYS=32
// Values of 256 are not among them: on Turing registers spill by 8 bytes.
//
// The rows of a block are the heads that share keys and values, of consecutive tokens. A warp has 16 of them,
// and all their scores. Steps of KEYS positions go through shared memory, as 16-bit floats: while scores are
// computed the values arrive, and while these are summed the next keys. Where the tokens of a block are of
// several sequences, one sequence follows the other, and rows of others are computed for nothing.
//
// Of q8_0 the bytes are multiplied, as halves, and the scales by themselves: those of keys with the products
// of a block of 32 values, those of values with the weights.
#include "attention.cuh"
#include "stage.cuh"

typedef cells::KEY_KIND Key;
typedef cells::VALUE_KIND Value;

constexpr int ROWS = BLOCK_ROWS, THREADS = ROWS / 16 * WARP, KEYS = STEP_KEYS, KEY_TILES = KEYS / 8;
constexpr int KEY_WIDTH = padded(KEY_DIM), KEY_STEPS = KEY_WIDTH / 16;
constexpr int VALUE_WIDTH = padded(VALUE_DIM), VALUE_TILES = VALUE_WIDTH / 8;
constexpr int BLOCK_STEPS = BLOCK / 16, BLOCK_TILES = BLOCK / 8;

typedef Stage<Key, KEY_WIDTH, KEYS, THREADS> KeyStage;
typedef Stage<Value, VALUE_WIDTH, KEYS, THREADS> ValueStage;

// So many of a multiprocessor that registers are to do for; Turing has shared memory for one.
constexpr int BLOCKS = __CUDA_ARCH__ < 800 || VALUE_WIDTH > 128 ? 1 : 2;
constexpr int STAGE_UNITS = KeyStage::UNITS + ValueStage::UNITS;

// The queries of a warp as fragments in shared memory: [step of 16 values][part][register][lane].
constexpr int QUERY_PARTS = Key::Part::SPLITS, QUERY_UNITS = KEY_STEPS * QUERY_PARTS * WARP;
struct Queries {
    uint32_t* fragments;
    float factors[2];  // of scores of the rows g and g + 8

    // rows: of q, for g and g + 8.
    DEVICE Queries(const float* const (&rows)[2], float scale, uint4* units)
        : fragments(reinterpret_cast<uint32_t*>(units)) {
        const int lane = threadIdx.x % WARP, t = lane % 4;
        float by[2];
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float largest = 0.0f, back;
#pragma unroll 4
            for (int i = 0; i < 2 * KEY_STEPS; i++) {
                float x[2];
                load_values<KEY_DIM>(rows[row], 8 * i + 2 * t, x);
                largest = fmaxf(largest, fmaxf(fabsf(x[0]), fabsf(x[1])));
            }
            by[row] = into_range(warp_max<4>(largest), back);
            factors[row] = scale * LOG2_E * back;
        }
#pragma unroll 2
        for (int step = 0; step < KEY_STEPS; step++) {
#pragma unroll
            for (int r = 0; r < 4; r++) {
                float x[2];
                load_values<KEY_DIM>(rows[r % 2], 16 * step + r / 2 * 8 + 2 * t, x);
                uint32_t parts[QUERY_PARTS];
                split<Key::Part>(x[0] * by[r % 2], x[1] * by[r % 2], parts);
#pragma unroll
                for (int part = 0; part < QUERY_PARTS; part++)
                    fragments[((step * QUERY_PARTS + part) * 4 + r) * WARP + lane] = parts[part];
            }
        }
    }

    DEVICE void get(int step, int part, uint32_t (&a)[4]) const {
        ldmatrix_x4(a, fragments + ((step * QUERY_PARTS + part) * WARP + threadIdx.x % WARP) * 4);
    }
};

constexpr int WEIGHT_PARTS = Value::Part::SPLITS;
typedef float Scores[KEY_TILES][4];  // of row g + i / 2 * 8 at position 8 * tile + 2 * t + i % 2

DEVICE void clear(Scores& scores) {
#pragma unroll
    for (int tile = 0; tile < KEY_TILES; tile++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[tile][i] = 0.0f;
    }
}

// Adds the products of 16 values.
DEVICE void add_products(const Queries& queries, const KeyStage& keys, int step, Scores& scores) {
    const int lane = threadIdx.x % WARP;
    uint32_t a[QUERY_PARTS][4];
#pragma unroll
    for (int part = 0; part < QUERY_PARTS; part++) queries.get(step, part, a[part]);
#pragma unroll
    for (int tile = 0; tile < KEY_TILES; tile += 2) {
        uint32_t r[4];  // 8 values and 8 more, of 8 positions and 8 more
        ldmatrix_x4(r, keys.at(8 * tile, lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
        for (int part = QUERY_PARTS - 1; part >= 0; part--) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint32_t b[2] = {r[2 * i], r[2 * i + 1]};
                Key::Part::mma(scores[tile + i], a[part], b);
            }
        }
    }
}

// Scores (or weights) times the scales of a block.
template <class Staged> DEVICE void scale_block(const Staged& stage, int block, Scores& scores) {
#pragma unroll
    for (int tile = 0; tile < KEY_TILES; tile++) {
        const float2 scales = stage.two_scales(block, 8 * tile + threadIdx.x % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4; i++) scores[tile][i] *= i % 2 ? scales.y : scales.x;
    }
}

DEVICE void multiply_keys(const Queries& queries, const KeyStage& keys, Scores& scores) {
    clear(scores);
#pragma unroll
    for (int step = 0; step < KEY_STEPS; step += BLOCK_STEPS) {
        Scores of_block;
        if constexpr (Key::SCALED) {
            __syncwarp();  // else so much is begun at once that registers spill
            clear(of_block);
        }
#pragma unroll
        for (int i = 0; i < BLOCK_STEPS; i++)
            add_products(queries, keys, step + i, Key::SCALED ? of_block : scores);
        if constexpr (Key::SCALED) {
            scale_block(keys, step / BLOCK_STEPS, of_block);
#pragma unroll
            for (int tile = 0; tile < KEY_TILES; tile++) {
#pragma unroll
                for (int i = 0; i < 4; i++) scores[tile][i] += of_block[tile][i];
            }
        }
    }
}

// Weights as fragments for steps of 16 positions.
typedef uint32_t WeightFragments[KEYS / 16][WEIGHT_PARTS][4];
DEVICE void split_weights(const Scores& weights, WeightFragments& a) {
#pragma unroll
    for (int tile = 0; tile < KEY_TILES; tile++) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            uint32_t parts[WEIGHT_PARTS];
            split<Value::Part>(weights[tile][2 * row], weights[tile][2 * row + 1], parts);
#pragma unroll
            for (int part = 0; part < WEIGHT_PARTS; part++)
                a[tile / 2][part][tile % 2 * 2 + row] = parts[part];
        }
    }
}

// The softmax of two rows of a lane, g and g + 8, over what they have seen.
struct State {
    float largest[2] = {NEVER, NEVER}, totals[2] = {};
    float sums[VALUE_TILES][4] = {};  // of row g + i / 2 * 8, value 8 * tile + 2 * t + i % 2

    // Scores to weights.
    DEVICE void weigh(Scores& scores) {
        float by[2];
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float most = NEVER;
#pragma unroll
            for (int tile = 0; tile < KEY_TILES; tile++)
                most = fmaxf(most, fmaxf(scores[tile][2 * row], scores[tile][2 * row + 1]));
            most = fmaxf(largest[row], warp_max<4>(most));
            by[row] = exp2f(largest[row] - most);
            largest[row] = most, totals[row] *= by[row];
#pragma unroll
            for (int tile = 0; tile < KEY_TILES; tile++) {
#pragma unroll
                for (int i = 2 * row; i < 2 * row + 2; i++)
                    totals[row] += scores[tile][i] = exp2f(scores[tile][i] - most + PEAK);
            }
        }
        rescale(make_float2(by[0], by[1]));
    }

    DEVICE void rescale(float2 by) {
        if (!__any_sync(ALL_LANES, by.x != 1.0f || by.y != 1.0f)) return;
#pragma unroll
        for (int tile = 0; tile < VALUE_TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[tile][i] *= i < 2 ? by.x : by.y;
        }
    }

    // Adds the weighted values.
    DEVICE void add(const Scores& weights, const ValueStage& values) {
        WeightFragments a;
        if constexpr (!Value::SCALED) split_weights(weights, a);
#pragma unroll
        for (int tile = 0; tile < VALUE_TILES; tile += BLOCK_TILES) {
            __syncwarp();  // as there
            if constexpr (Value::SCALED) {
                Scores scaled;
#pragma unroll
                for (int i = 0; i < 4 * KEY_TILES; i++) scaled[i / 4][i % 4] = weights[i / 4][i % 4];
                scale_block(values, tile / BLOCK_TILES, scaled);
                split_weights(scaled, a);
            }
#pragma unroll
            for (int i = 0; i < BLOCK_TILES; i += 2) add_tiles(tile + i, a, values);
        }
    }

    // 16 values. A step's products are summed by themselves: tensor cores cut sums off, not round.
    DEVICE void add_tiles(int tile, const WeightFragments& a, const ValueStage& values) {
        const int lane = threadIdx.x % WARP;
        float d[2][4] = {};
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            uint32_t r[4];  // 8 positions and 8 more, of 8 values and 8 more
            ldmatrix_x4_trans(r, values.at(16 * step, lane % 16, tile + lane / 16));
#pragma unroll
            for (int part = WEIGHT_PARTS - 1; part >= 0; part--) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const uint32_t b[2] = {r[2 * i], r[2 * i + 1]};
                    Value::Part::mma(d[i], a[step][part], b);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) sums[tile + i / 4][i % 4] += d[i / 4][i % 4];
    }
};

// The rows of a block are [token, head], of tokens first ... stop - 1; a lane has the rows g and g + 8 of its
// warp.
struct Rows {
    HeadTile<ROWS> heads;
    int each;  // rows of a token
    int first, stop;

    DEVICE explicit Rows(const Attention& a) : heads(a), each(min_of(a.heads / a.kv_heads, ROWS)) {
        const int tokens = ROWS / each;
        first = (gridDim.y - 1 - blockIdx.y) * tokens;  // the last ones see most, and begin first
        stop = min(first + tokens, a.n);
    }

    DEVICE static int of_warp() { return threadIdx.x / WARP * 16; }
    DEVICE static int of_lane(int i) { return of_warp() + threadIdx.x % WARP / 4 + 8 * i; }
    DEVICE int token(int row) const { return first + row / each; }

    // Where a lane's row is among [n, heads], if it is a row of the tokens begin ... end - 1; else -1.
    DEVICE int64_t index(const Attention& a, int i, int begin, int end) const {
        const int row = of_lane(i), head = row % each;
        const bool valid = token(row) >= begin && token(row) < end && head < heads.count;
        return valid ? int64_t(token(row)) * a.heads + heads.first + head : -1;
    }
};

// Where the tokens of `begin`'s sequence end.
DEVICE int end_of_run(const Attention& a, int begin, int stop) {
    const int lane = threadIdx.x % WARP, sequence = a.sequences[begin];
    for (int end = begin;; end += WARP) {
        const bool same = end + lane < stop && a.sequences[end + lane] == sequence;
        const unsigned others = ~__ballot_sync(ALL_LANES, same);
        if (others) return end + __ffs(others) - 1;
    }
}

// What a warp sees of a run: the positions of its first and last token there.
struct Sight {
    int lowest = 0, highest = -1, positions[2];

    DEVICE Sight(const Attention& a, const Rows& rows, int begin, int end) {
        const int row = Rows::of_warp();
        const int low = max(rows.token(row), begin), high = min(rows.token(row + 15), end - 1);
        if (low <= high) lowest = a.positions[low], highest = a.positions[high];
#pragma unroll
        for (int i = 0; i < 2; i++) positions[i] = a.positions[min(rows.token(Rows::of_lane(i)), end - 1)];
    }

    // Whether any, and whether all tokens see something of KEYS positions.
    DEVICE bool any(const Attention& a, int first) const {
        return first <= highest && first + KEYS > a.oldest(lowest);
    }
    DEVICE bool all(const Attention& a, int first) const {
        return first + KEYS - 1 <= lowest && first >= a.oldest(highest);
    }
};

// Products to scores; those of positions that are not seen to NEVER.
DEVICE void finish_scores(const Attention& a, const Queries& queries, const Sight& sight, int first,
                          Scores& scores) {
    const bool all = sight.all(a, first);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int newest = sight.positions[i / 2], oldest = a.oldest(newest);
#pragma unroll
        for (int tile = 0; tile < KEY_TILES; tile++) {
            const int position = first + 8 * tile + threadIdx.x % 4 * 2 + i % 2;
            const bool seen = all || (position <= newest && position >= oldest);
            scores[tile][i] = seen ? a.score(scores[tile][i], queries.factors[i / 2]) : NEVER;
        }
    }
}

// The results of a lane's row, which is row `index` of [n, heads].
DEVICE void write_row(const Attention& a, const State& state, int i, int64_t index, int head, float total) {
    const int t = threadIdx.x % 4;
    const int64_t part = index * gridDim.z + blockIdx.z;
    const bool whole = gridDim.z == 1;
    const float by = whole ? normalizer(state.largest[i], total, a.sinks, head) : 1.0f;
    float* const row = whole ? a.y + index * VALUE_DIM : a.sums + part * VALUE_DIM;
#pragma unroll
    for (int tile = 0; tile < VALUE_TILES; tile++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int value = 8 * tile + 2 * t + j;
            if (value < VALUE_DIM) row[value] = state.sums[tile][2 * i + j] * by;
        }
    }
    if (!whole && t == 0) a.states[part] = make_float2(state.largest[i], total);
}

// The tokens begin ... end - 1, which are of one sequence, in order of their positions.
DEVICE void attend_run(const Attention& a, const Rows& rows, const Queries& queries, const KeyStage& keys,
                       const ValueStage& values, int begin, int end) {
    const Sight sight(a, rows, begin, end);
    const int newest = a.positions[end - 1], *const table = a.table(a.sequences[begin]);
    const Span all = {a.oldest(a.positions[begin]) / KEYS, newest / KEYS + 1};
    const Span steps = part_of(all, blockIdx.z, gridDim.z);
    const int kv_head = rows.heads.kv_head;
    State state;
    if (steps.begin < steps.end) keys.load(a, a.keys, table, kv_head, steps.begin * KEYS, newest + 1);
    for (int step = steps.begin; step < steps.end; step++) {
        const int first = step * KEYS;
        const bool busy = sight.any(a, first);
        Scores scores;
        cp_async_wait<0>();
        __syncthreads();  // the keys are there, and nobody reads values any more
        values.load(a, a.values, table, kv_head, first, newest + 1);
        if (busy) {
            multiply_keys(queries, keys, scores);
            finish_scores(a, queries, sight, first, scores);
            state.weigh(scores);
        }
        cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < steps.end) keys.load(a, a.keys, table, kv_head, first + KEYS, newest + 1);
        if (busy) state.add(scores, values);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int64_t index = rows.index(a, i, begin, end);
        const float total = warp_sum<4>(state.totals[i]);
        if (index >= 0) write_row(a, state, i, index, index % a.heads, total);
    }
}

// grid: [kv_heads * tiles of ROWS heads, tiles of ROWS / heads of a tile tokens, parts]
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
attention_prefill(const float* q, float* y, float* sums, float2* states, const int* positions,
                  const int* sequences, const int* tables, const uint8_t* keys, const uint8_t* values,
                  const float* sinks, int n, int heads, int kv_heads, int table_stride, int window,
                  float scale, float cap) {
    wait_for_previous();
    extern __shared__ __align__(16) uint4 units[];
    const Attention a = {q,     y, sums,  states,   positions,    sequences, tables, keys, values,
                         sinks, n, heads, kv_heads, table_stride, window,    scale,  cap};
    const Rows rows(a);
    if (rows.first >= rows.stop) return;
    const float* lane_rows[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int64_t index = rows.index(a, i, rows.first, rows.stop);
        lane_rows[i] = q + max(index, int64_t(0)) * KEY_DIM;  // results of rows that are none are not written
    }
    const Queries queries(lane_rows, scale, units + STAGE_UNITS + threadIdx.x / WARP * QUERY_UNITS);
    const KeyStage key_stage = {units};
    const ValueStage value_stage = {units + KeyStage::UNITS};
    for (int begin = rows.first; begin < rows.stop;) {
        const int end = end_of_run(a, begin, rows.stop);
        attend_run(a, rows, queries, key_stage, value_stage, begin, end);
        begin = end;
    }
}

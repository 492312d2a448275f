// A block's tile of int8 products on tensor cores: TILE_ROWS rows of weights times TILE_COLUMNS columns.
//
// Each step takes 64 values, two groups of 32. Of the weights a thread unpacks one group: it loads the next
// step's into registers before the products of this step, and stores it to the other of two buffers after
// them. Columns come by cp.async, STAGES - 1 steps ahead. There is one barrier a step.
//
// In shared memory a row and a column of a step are 64 bytes: four chunks of 16, swizzled (see `chunk_at`),
// so that what eight neighbouring threads store or ldmatrix loads at once is in different banks. Nothing is
// padded.
//
// The int32 sums of a group start at MAGIC: read as a float, such a sum is 1.5 * 2^23 + sum, exactly, since
// |sum| is below 2^22. A scale is an f16 times a small whole number, or a power of two, so MAGIC * scale is
// exact too (below 2^104, where it overflows), and one fma makes scale * sum of it. So a group's sum costs
// two fma, three with an offset; four where each half of the group has its own scale.
#pragma once
#include "columns.cuh"
#include "formats.cuh"
#include "ptx.cuh"

constexpr int GROUP = 32, GROUPS = 2, STEP = GROUPS * GROUP;  // values
constexpr int CHUNK = 16, CHUNKS = STEP / CHUNK;              // bytes, and how many a row of a step has
constexpr int HALVES = GROUP / Weights::PER_SCALE;            // scales in a group

constexpr int THREADS = GROUPS * TILE_ROWS, WARPS = THREADS / WARP;
constexpr int WARPS_ACROSS = TILE_COLUMNS >= 64 ? 2 : 1;  // over the columns; the others are over the rows
constexpr int WARP_ROWS = TILE_ROWS * WARPS_ACROSS / WARPS, WARP_COLUMNS = TILE_COLUMNS / WARPS_ACROSS;
constexpr int ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8;  // of an mma, in a warp
static_assert(WARP_ROWS % 16 == 0 && WARP_COLUMNS % 16 == 0 && TILE_COLUMNS <= THREADS, "no such tile");

// Blocks that share a multiprocessor: its 65,536 registers are then enough for each, and nothing spills.
constexpr int BLOCKS = TILE_ROWS == 128 ? 1 : (TILE_COLUMNS == 64 ? 4 : TILE_COLUMNS == 32 ? 5 : 6) - HALVES;
static_assert(TILE_ROWS == 64 ? TILE_COLUMNS <= 64 : HALVES == 1, "too many sums for a thread's registers");

constexpr int STAGES = TILE_COLUMNS <= 64 ? 3 : 2;  // fits 48 KiB with TILE_ROWS = TILE_COLUMNS = 128
constexpr unsigned AHEAD = 16;  // groups that the L2 cache is told of before they are loaded

constexpr int MAGIC = 0x4b400000;
constexpr float MAGIC_FLOAT = 12582912.0f;

// A group of a row, in a thread's registers.
struct Group {
    int q[GROUP / 4];
    float scale[2], offset[2];
};

// What the values of a group stand for: scale * q - offset, in each half if there are two.
struct __align__(8 * HALVES) Factors {
    float scale[HALVES], offset[HALVES];
};

// Of a column's groups in a step: d, and d times the sum of the bytes.
struct __align__(16) Pairs {
    float2 group[GROUPS];
};

struct __align__(16) Buffers {
    uint8_t rows[2][TILE_ROWS * STEP], columns[STAGES][TILE_COLUMNS * STEP];
    Factors factors[2][TILE_ROWS][GROUPS];
    Pairs pairs[STAGES][TILE_COLUMNS];
};

typedef float Sums[ROW_TILES][COLUMN_TILES][4];  // a thread's part of the tile, as mma lays it out

// Eight rows on, or a multiple of that, it is just eight rows further.
DEVICE int chunk_at(int row, int chunk) { return row * STEP + (chunk ^ (row / 2 & 3)) * CHUNK; }

// What one thread unpacks of the block's rows: the same group of each step of the same row. Beyond the last
// row and the last group these are loaded again, so that no branch keeps loads and products apart. Nobody
// writes what comes of such rows, and such groups meet columns of zeros.
class RowLoader {
    const uint8_t* row;
    unsigned last;  // group

  public:
    DEVICE RowLoader(const uint8_t* w, int rows, int k, int first_row) : last(unsigned(k - GROUP) / GROUP) {
        const int r = min(first_row + int(threadIdx.x) / GROUPS, rows - 1);
        row = w + (long long)r * (k / Weights::VALUES) * Weights::BYTES;
    }

    DEVICE void load(int step, Group& to) const {
        const unsigned g = GROUPS * step + threadIdx.x % GROUPS;
        prefetch_l2(row + min(g + AHEAD, last) * (GROUP * Weights::BYTES) / Weights::VALUES);
        Weights::group(row, min(g, last), to.q, to.scale, to.offset);
    }

    DEVICE void store(Buffers& buffers, int buffer, const Group& from) const {
        const int r = threadIdx.x / GROUPS, g = threadIdx.x % GROUPS;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int* q = from.q + 4 * i;
            int4* to = reinterpret_cast<int4*>(buffers.rows[buffer] + chunk_at(r, 2 * g + i));
            *to = make_int4(q[0], q[1], q[2], q[3]);
        }
        Factors factors;
#pragma unroll
        for (int h = 0; h < HALVES; h++) factors.scale[h] = from.scale[h], factors.offset[h] = from.offset[h];
        buffers.factors[buffer][r][g] = factors;
    }
};

// The block's columns: `count` from number `first` on, or those that `index` has from there on.
struct Columns {
    const uint8_t* x;
    const int* index;
    int first, count, k;

    // Where one begins, in chunks from x: a register, where an address would be two.
    DEVICE unsigned at(int i) const {
        const int column = i >= count ? 0 : index ? index[first + i] : first + i;
        return column * unsigned(column_bytes(k) / CHUNK);
    }
};

// What one thread copies of them: the same chunk of each step of some columns, and one column's pairs. What
// is beyond the last column or value is zeros.
class ColumnLoader {
    static constexpr int APART = THREADS / CHUNKS;  // from one of its columns to the next
    static constexpr int COUNT = ceil_div(TILE_COLUMNS, APART);
    static_assert(sizeof(Pairs) == CHUNK, "of a step");
    const uint4* x;
    unsigned bytes[COUNT], pairs;
    int count, k;

  public:
    DEVICE explicit ColumnLoader(const Columns& columns)
        : x(reinterpret_cast<const uint4*>(columns.x)), count(columns.count), k(columns.k) {
        const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
#pragma unroll
        for (int i = 0; i < COUNT; i++) bytes[i] = columns.at(first + i * APART) + chunk;
        pairs = columns.at(threadIdx.x) + k / CHUNK;
    }

    DEVICE void load(Buffers& buffers, int stage, int step) const {
        const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int column = first + i * APART;
            if (TILE_COLUMNS % APART != 0 && column >= TILE_COLUMNS) break;
            uint8_t* to = buffers.columns[stage] + i * APART * STEP + chunk_at(first, chunk);
            cp_async_16(to, x + (bytes[i] + CHUNKS * step),
                        column < count && STEP * step + CHUNK * chunk < k);
        }
        // Where the last step has but one group, the zeros that fill a column up are the other's pair.
        const int column = threadIdx.x;
        if (column < TILE_COLUMNS)
            cp_async_16(&buffers.pairs[stage][column], x + (pairs + step), column < count && STEP * step < k);
    }
};

// What one thread has of a group of 16 rows.
struct RowFragment {
    uint32_t q[4];
    Factors factors[2];  // of rows g and g + 8, see ptx.cuh

    DEVICE void load(const Buffers& buffers, int buffer, int row, int g) {
        const int lane = threadIdx.x % WARP;
        ldmatrix_x4(q, buffers.rows[buffer] + row * STEP + chunk_at(lane % 16, 2 * g + lane / 16));
#pragma unroll
        for (int i = 0; i < 2; i++) factors[i] = buffers.factors[buffer][row + lane / 4 + 8 * i][g];
    }
};

// The same of 8 columns; they are loaded two at a time.
struct ColumnFragment {
    uint32_t q[2];
    float2 pairs[2];  // of columns 2 t and 2 t + 1

    static DEVICE void load(ColumnFragment (&to)[2], const Buffers& buffers, int stage, int column, int g) {
        const int lane = threadIdx.x % WARP, row = lane / 16 * 8 + lane % 8;
        uint32_t q[4];
        ldmatrix_x4(q, buffers.columns[stage] + column * STEP + chunk_at(row, 2 * g + lane / 8 % 2));
#pragma unroll
        for (int c = 0; c < 2; c++) {
            to[c].q[0] = q[2 * c], to[c].q[1] = q[2 * c + 1];
#pragma unroll
            for (int i = 0; i < 2; i++)
                to[c].pairs[i] = buffers.pairs[stage][column + 8 * c + lane % 4 * 2 + i].group[g];
        }
    }
};

// The sum that starts at MAGIC times scale, rounded once.
DEVICE float scaled(int sum, float scale) { return fmaf(__int_as_float(sum), scale, -MAGIC_FLOAT * scale); }

// sums += scale * (q . column) - offset * (sum of the column), where a scale and an offset serve the whole
// group.
DEVICE void add_group(float (&sums)[4], const RowFragment& rows, const ColumnFragment& columns) {
    int dots[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
    mma_m16n8k32_s8(dots, rows.q, columns.q);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const Factors& row = rows.factors[i / 2];
        const float2 column = columns.pairs[i % 2];
        sums[i] = fmaf(scaled(dots[i], row.scale[0]), column.x, sums[i]);
        if (Weights::OFFSETS) sums[i] = fmaf(-row.offset[0], column.y, sums[i]);
    }
}

// The same where each half of the group has its own.
DEVICE void add_halves(float (&sums)[4], const RowFragment& rows, const ColumnFragment& columns) {
    int dots[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t a[2] = {rows.q[2 * h], rows.q[2 * h + 1]}, b[1] = {columns.q[h]};
#pragma unroll
        for (int i = 0; i < 4; i++) dots[h][i] = MAGIC;
        mma_m16n8k16_s8(dots[h], a, b);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const Factors& row = rows.factors[i / 2];
        const float both = scaled(dots[0][i], row.scale[0]) + scaled(dots[1][i], row.scale[HALVES - 1]);
        sums[i] = fmaf(both, columns.pairs[i % 2].x, sums[i]);
    }
}

// sums -= offset * (sum of the column) of both halves, for 16 * ROW_TILES rows and 8 columns. What the bytes
// of a column's first half sum up to, a product with ones says.
DEVICE void subtract_offsets(Sums& sums, const RowFragment (&rows)[ROW_TILES], const ColumnFragment& columns,
                             int c) {
    const uint32_t ones[2] = {0x01010101, 0x01010101}, b[1] = {columns.q[0]};
    int dots[4] = {};
    mma_m16n8k16_s8(dots, ones, b);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 column = columns.pairs[i % 2];
        const float first = column.x * dots[i % 2], second = column.y - first;
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            const Factors& row = rows[r].factors[i / 2];
            sums[r][c][i] = fmaf(-row.offset[0], first, sums[r][c][i]);
            sums[r][c][i] = fmaf(-row.offset[HALVES - 1], second, sums[r][c][i]);
        }
    }
}

// A warp's place in the block's tile.
DEVICE int warp_row() { return threadIdx.x / WARP / WARPS_ACROSS * WARP_ROWS; }
DEVICE int warp_column() { return threadIdx.x / WARP % WARPS_ACROSS * WARP_COLUMNS; }

// The products of a step's group.
DEVICE void multiply(Sums& sums, const Buffers& buffers, int buffer, int stage, int g) {
    RowFragment rows[ROW_TILES];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) rows[r].load(buffers, buffer, warp_row() + 16 * r, g);
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; c += 2) {
        ColumnFragment columns[2];
        __syncwarp();  // lest all columns are loaded at once: that takes more registers than there are
        ColumnFragment::load(columns, buffers, stage, warp_column() + 8 * c, g);
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                if (HALVES == 2)
                    add_halves(sums[r][c + i], rows[r], columns[i]);
                else
                    add_group(sums[r][c + i], rows[r], columns[i]);
            }
            if (HALVES == 2 && Weights::OFFSETS) subtract_offsets(sums, rows, columns[i], c + i);
        }
    }
}

// The products of steps begin to end. All threads of the block call it, once.
DEVICE void multiply_tile(Sums& sums, const RowLoader& rows, const ColumnLoader& columns, int begin,
                          int end) {
    __shared__ Buffers buffers;
    Group next;
    rows.load(begin, next);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        columns.load(buffers, i, begin + i);
        cp_async_commit();
    }
    rows.store(buffers, 0, next);
    int buffer = 0, stage = 0, free_stage = STAGES - 1;
    for (int step = begin; step < end; step++) {
        rows.load(step + 1, next);
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this step's rows and columns are there, and all are done with the last step's
        columns.load(buffers, free_stage, step + STAGES - 1);
        cp_async_commit();
#pragma unroll
        for (int g = 0; g < GROUPS; g++) multiply(sums, buffers, buffer, stage, g);
        buffer ^= 1, free_stage = stage, stage = stage + 1 == STAGES ? 0 : stage + 1;
        rows.store(buffers, buffer, next);
    }
    cp_async_wait<0>();  // for what was copied ahead
}

// y[column, row] = sum * scale + bias[row], which may be null; y, row and bias begin at the tile, whose last
// rows and columns may be beyond the matrix.
DEVICE void write_tile(const Sums& sums, float* y, long long y_stride, int rows, int columns, float scale,
                       const float* bias) {
    const int lane = threadIdx.x % WARP;
    const int first_row = warp_row() + lane / 4, first_column = warp_column() + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; i++) {
        const int row = first_row + 8 * i;
        if (row >= rows) break;
        const float more = bias ? bias[row] : 0.0f;
#pragma unroll
        for (int j = 0; j < 2 * COLUMN_TILES; j++) {
            const int column = first_column + j / 2 * 8 + j % 2;
            if (column < columns)
                y[column * y_stride + row] = sums[i / 2][j / 2][i % 2 * 2 + j % 2] * scale + more;
        }
    }
}

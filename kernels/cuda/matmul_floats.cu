// F32, F16 and BF16 weights times many columns of float32, in float32: nothing is rounded but sums.
//
// Plain multiply-adds, not tensor cores. With these, float32 would have to be split: three products of
// bfloat16 parts, whose sums the tensor cores truncate, so that they would have to be added up outside after
// every few. By the data sheets, a third of the rate of bfloat16 is less than that of float32 on the GeForce
// cards (RTX 3090: 71 / 3 to 36 TFLOPS, RTX 4090: 165 / 3 to 83), and where it is more (A100, H100), large
// batches are cuBLAS's.
//
// A block of 128 threads computes 64 rows of TILE_COLUMNS columns, a thread eight of these and
// TILE_COLUMNS / 16. Of every step of 32 values, the next one's are loaded to registers before the products,
// and stored to the other of two buffers after them: in shared memory, a value's rows lie side by side, so
// neighbouring threads, which have neighbouring rows, store and load without bank conflicts.
//
// variants: FORMAT=F32|F16|BF16 TILE_COLUMNS=16|32|64
#include "expert_tiles.cuh"
#include "formats.cuh"
#include "ptx.cuh"

constexpr int THREADS = 128, TILE_ROWS = 64, STEP = 32;
constexpr int FOLD = 8;  // steps that are summed up alone: a long sum would lose more than 1e-5
constexpr int ROWS_ACROSS = 8, THREAD_ROWS = 8, THREAD_COLUMNS = TILE_COLUMNS / 16;

struct __align__(16) Buffer {
    float rows[STEP][TILE_ROWS], columns[STEP][TILE_COLUMNS];
};

typedef float Sums[THREAD_COLUMNS][THREAD_ROWS];

// The bits of values i and on of a row of k, as many as a word has; beyond the last value are zeros.
template <class F> DEVICE uint32_t load_word(const uint8_t* row, int i, int k) {
    if (F::BYTES == 4) return i < k ? __ldg(reinterpret_cast<const uint32_t*>(row) + i) : 0;
    const uint8_t* p = row + 2 * int64_t(i);
    return (i < k ? load_16(p) : 0) | (i + 1 < k ? load_16(p + 2) << 16 : 0);
}

// The same for the 32 bytes of a unit.
template <class F> DEVICE void load_unit(const uint8_t* row, int first, int k, uint32_t (&words)[8]) {
    if (k % F::UNIT == 0 && first < k) {  // all rows are aligned
        load_128(row + int64_t(first) * F::BYTES, words);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) words[i] = load_word<F>(row, first + i * (F::UNIT / 8), k);
}

// What one thread loads of a tile of SIZE rows in a step, as it comes from memory; `at(i)` is row i.
template <class F, int SIZE> class Loader {
    static constexpr int UNITS = SIZE * STEP / F::UNIT, COUNT = ceil_div(UNITS, THREADS);
    const uint8_t* rows[COUNT];
    uint32_t words[COUNT][8];

    static DEVICE int unit(int i) { return threadIdx.x + i * THREADS; }

  public:
    template <class At> DEVICE explicit Loader(At at) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) rows[i] = at(unit(i) % SIZE);
    }

    DEVICE void load(int step, int k) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            load_unit<F>(rows[i], step * STEP + unit(i) / SIZE * F::UNIT, k, words[i]);
    }

    DEVICE void store(float (&to)[STEP][SIZE]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (UNITS % THREADS != 0 && unit(i) >= UNITS) break;
            float values[F::UNIT];
            F::unpack(words[i], values);
#pragma unroll
            for (int j = 0; j < F::UNIT; j++) to[unit(i) / SIZE * F::UNIT + j][unit(i) % SIZE] = values[j];
        }
    }
};

// A thread's first row is followed by three, and by as many 32 rows further.
DEVICE int thread_row(int i) { return threadIdx.x % ROWS_ACROSS * 4 + i / 4 * 32 + i % 4; }
DEVICE int thread_column(int i) { return threadIdx.x / ROWS_ACROSS * THREAD_COLUMNS + i; }

DEVICE void multiply(Sums& sums, const Buffer& buffer) {
#pragma unroll
    for (int i = 0; i < STEP; i++) {
        float rows[THREAD_ROWS], columns[THREAD_COLUMNS];
#pragma unroll
        for (int r = 0; r < THREAD_ROWS; r += 4)
            *reinterpret_cast<float4*>(rows + r) =
                *reinterpret_cast<const float4*>(buffer.rows[i] + thread_row(r));
#pragma unroll
        for (int c = 0; c < THREAD_COLUMNS; c++) columns[c] = buffer.columns[i][thread_column(c)];
#pragma unroll
        for (int c = 0; c < THREAD_COLUMNS; c++)
#pragma unroll
            for (int r = 0; r < THREAD_ROWS; r++) sums[c][r] = fmaf(rows[r], columns[c], sums[c][r]);
    }
}

DEVICE void add(Sums& sums, const Sums& part) {
#pragma unroll
    for (int c = 0; c < THREAD_COLUMNS; c++)
#pragma unroll
        for (int r = 0; r < THREAD_ROWS; r++) sums[c][r] += part[c][r];
}

// The products of steps begin to end; row_at and column_at: where those of the tile begin. All threads of
// the block call it, once.
template <class RowAt, class ColumnAt>
DEVICE void multiply_tile(Sums& sums, RowAt row_at, ColumnAt column_at, int k, int begin, int end) {
    __shared__ Buffer buffers[2];
    Loader<Weights, TILE_ROWS> rows(row_at);
    Loader<F32, TILE_COLUMNS> columns(column_at);
    int buffer = 0;
    rows.load(begin, k), columns.load(begin, k);
    rows.store(buffers[0].rows), columns.store(buffers[0].columns);
    for (int step = begin; step < end;) {
        Sums part = {};
        for (const int fold = min(step + FOLD, end); step < fold; step++) {
            rows.load(step + 1, k), columns.load(step + 1, k);
            __syncthreads();  // this step's values are there, and all are done with the last step's
            multiply(part, buffers[buffer]);
            buffer ^= 1;
            rows.store(buffers[buffer].rows), columns.store(buffers[buffer].columns);
        }
        add(sums, part);
    }
}

// y[column, row] = sum * scale + bias[row], which may be null; all begin at the tile.
DEVICE void write_tile(const Sums& sums, float* y, long long y_stride, int rows, int columns, float scale,
                       const float* bias) {
#pragma unroll
    for (int r = 0; r < THREAD_ROWS; r++) {
        const int row = thread_row(r);
        if (row >= rows) break;
        const float more = bias ? bias[row] : 0.0f;
#pragma unroll
        for (int c = 0; c < THREAD_COLUMNS; c++) {
            const int column = thread_column(c);
            if (column < columns) y[column * y_stride + row] = sums[c][r] * scale + more;
        }
    }
}

DEVICE const uint8_t* row_of(const void* x, long long i, int k, int bytes) {
    return static_cast<const uint8_t*>(x) + i * k * bytes;
}

// y[n, rows] = x[n, k] . w[rows, k]^T * scale + bias[rows], as `matmul` does with quantized weights: see
// matmul.cu.
extern "C" __global__ void __launch_bounds__(THREADS)
    matmul_floats(const uint8_t* __restrict__ w, int rows, int k, const float* __restrict__ x, int n,
                  float* __restrict__ y, float scale, const float* __restrict__ bias) {
    wait_for_previous();
    const int row = blockIdx.y * TILE_ROWS, first = blockIdx.x * TILE_COLUMNS;
    if (first >= n) return;
    const long long steps = ceil_div(k, STEP), split = blockIdx.z, splits = gridDim.z;
    const int begin = int(steps * split / splits), end = int(steps * (split + 1) / splits);
    Sums sums = {};
    multiply_tile(
        sums, [=](int i) { return row_of(w, min(row + i, rows - 1), k, Weights::BYTES); },
        [=](int i) { return row_of(x, min(first + i, n - 1), k, F32::BYTES); }, k, begin, end);
    y += (split * n + first) * rows + row;
    write_tile(sums, y, rows, rows - row, n - first, scale, bias ? bias + row : nullptr);
}

// y[pair, rows] = x[pair] . w[expert, rows, k]^T * scales[expert], as `matmul_experts` does with quantized
// weights.
extern "C" __global__ void __launch_bounds__(THREADS)
    matmul_floats_experts(const uint8_t* __restrict__ w, int rows, int k, const float* __restrict__ x,
                          const int* __restrict__ starts, int experts, const int* __restrict__ tokens,
                          float* __restrict__ y, const float* __restrict__ scales) {
    wait_for_previous();
    const ExpertTile& tile = expert_tile(starts, experts, TILE_COLUMNS);
    if (tile.expert < 0) return;
    const int row = blockIdx.y * TILE_ROWS;
    const long long first_row = (long long)tile.expert * rows;
    Sums sums = {};
    multiply_tile(
        sums, [=](int i) { return row_of(w, first_row + min(row + i, rows - 1), k, Weights::BYTES); },
        [=](int i) {
            const int pair = tile.first + min(i, tile.count - 1);
            return row_of(x, tokens ? tokens[pair] : pair, k, F32::BYTES);
        },
        k, 0, ceil_div(k, STEP));
    y += (long long)tile.first * rows + row;
    write_tile(sums, y, rows, rows - row, tile.count, scales ? scales[tile.expert] : 1.0f, nullptr);
}

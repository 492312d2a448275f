// What sampling needs of logits[n, stride]: the best token, or the k best, so that only a few numbers a row
// go to the host. Looked at are the first `width` of each row: some models have more logits than words.
//
// A vocabulary is too much for one block. A row is cut into slices of SLICE logits, a block each (blocks
// [slices, n]); what they found is put together by one block a row, or, for the k best, in slices again.
#include "elements.cuh"
#include "ptx.cuh"
#include "reductions.cuh"

constexpr int SLICE = 2048;

// A logit and its id as one number: larger is better, of equal logits the lower id. So no two are equal, and
// the order in which threads look does not matter. What is no number comes first: the host must see it.
// 0 is none, which is worse than all.
typedef uint64_t Key;

DEVICE Key key_of(float logit, int id) {
    const uint32_t bits = logit == logit ? __float_as_uint(logit + 0.0f) : 0x7fffffffu;  // -0 + 0 is 0
    const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return Key(ordered) << 32 | uint32_t(~id);
}

DEVICE int id_of(Key key) { return int(~uint32_t(key)); }  // -1 for none

DEVICE float logit_of(Key key) {
    const uint32_t ordered = uint32_t(key >> 32);
    if (key == 0) return -infinity();
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

// f(logit, id) for this thread's logits of the block's slice of a row, which is one of many.
template <class F> DEVICE void each_logit(const float* row, int width, int stride, F f) {
    const int begin = blockIdx.x * SLICE, end = min(begin + SLICE, width);
    if ((width | stride) % 4 == 0) {
        for (int i = begin + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
            const float4 v = at<float4>(row, i);
            f(v.x, i);
            f(v.y, i + 1);
            f(v.z, i + 2);
            f(v.w, i + 3);
        }
    } else {
        for (int i = begin + threadIdx.x; i < end; i += blockDim.x) f(row[i], i);
    }
}

// ---------------------------------------------------------------- the best

// best[n, slices]: the best of each slice.
extern "C" __global__ void argmax(const float* logits, Key* best, int n, int width, int stride) {
    wait_for_previous();
    const int row = blockIdx.y;
    if (row >= n) return;
    logits += int64_t(row) * stride;
    Key mine = 0;
    each_logit(logits, width, stride, [&](float v, int id) { mine = Largest()(mine, key_of(v, id)); });
    mine = block_reduce(mine, Largest(), Key(0));
    if (threadIdx.x == 0) best[int64_t(row) * gridDim.x + blockIdx.x] = mine;
}

// ids and values [n], of the best of all slices: -1 and -infinity where there is none. Blocks [n].
extern "C" __global__ void argmax_of_slices(const Key* best, int* ids, float* values, int n, int slices) {
    wait_for_previous();
    const int row = blockIdx.x;
    if (row >= n) return;
    Key mine = 0;
    for (int i = threadIdx.x; i < slices; i += blockDim.x) mine = Largest()(mine, best[row * slices + i]);
    mine = block_reduce(mine, Largest(), Key(0));
    if (threadIdx.x > 0) return;
    ids[row] = id_of(mine);
    values[row] = logit_of(mine);
}

// ---------------------------------------------------------------- the k best

// Sorts `size` keys, a power of two of at least 2, the largest first: bitonic (Batcher 1968), as its order of
// comparisons does not depend on the keys. size / 2 threads compare, all take part in the barriers.
DEVICE void sort_keys(Key* keys, int size) {
    const int i = threadIdx.x;
    for (int length = 2; length <= size; length *= 2) {
        for (int stride = length / 2; stride > 0; stride /= 2) {
            __syncthreads();
            const int a = 2 * i - (i & (stride - 1)), b = a + stride;
            if (b >= size) continue;
            const Key x = keys[a], y = keys[b];
            if ((x < y) == ((a & length) == 0)) {
                keys[a] = y;
                keys[b] = x;
            }
        }
    }
    __syncthreads();
}

// Sorts the block's `count` keys of a row, and writes the first k: as keys, or, when this is the row's only
// slice, as ids and logits. Where there are fewer than k the rest is none: -1 and -infinity.
DEVICE void write_best(Key* keys, int count, int row, int k, Key* best, int* ids, float* values) {
    int size = 2;
    while (size < count) size *= 2;
    for (int i = count + threadIdx.x; i < size; i += blockDim.x) keys[i] = 0;
    sort_keys(keys, size);
    const int64_t to = (int64_t(row) * gridDim.x + blockIdx.x) * k;
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        const Key key = i < size ? keys[i] : 0;
        if (gridDim.x > 1) {
            best[to + i] = key;
        } else {
            ids[to + i] = id_of(key);
            values[to + i] = logit_of(key);
        }
    }
}

// best[n, slices, k]: the k best of each slice, sorted; or ids and values [n, k], when there is one slice.
extern "C" __global__ void __launch_bounds__(SLICE / 2)
top_k(const float* logits, Key* best, int* ids, float* values, int n, int width, int stride, int k) {
    wait_for_previous();
    __shared__ Key keys[SLICE];
    const int row = blockIdx.y;
    if (row >= n) return;
    logits += int64_t(row) * stride;
    const int begin = blockIdx.x * SLICE;
    each_logit(logits, width, stride, [&](float logit, int id) { keys[id - begin] = key_of(logit, id); });
    write_best(keys, min(SLICE, width - begin), row, k, best, ids, values);
}

// The same of found[n, count], which are keys that an earlier launch has left.
extern "C" __global__ void __launch_bounds__(SLICE / 2)
top_k_of_slices(const Key* found, Key* best, int* ids, float* values, int n, int count, int k) {
    wait_for_previous();
    __shared__ Key keys[SLICE];
    const int row = blockIdx.y;
    if (row >= n) return;
    found += int64_t(row) * count;
    const int begin = blockIdx.x * SLICE, mine = min(SLICE, count - begin);
    for (int i = threadIdx.x; i < mine; i += blockDim.x) keys[i] = found[begin + i];
    write_best(keys, mine, row, k, best, ids, values);
}

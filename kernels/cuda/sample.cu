// What sampling needs of logits[n, stride]: the best token, or the k best, so that only a few numbers a row
// go to the host. Looked at are the first `width` of each row: some models have more logits than words.
//
// A vocabulary is too much for one block. A row is cut into slices of SLICE logits, a block each (blocks
// [slices, n]); what they found is put together by one block a row, or, for the k best of a very large
// vocabulary, in slices again.
#include "elements.cuh"
#include "ptx.cuh"
#include "reductions.cuh"

constexpr int SLICE = 4096;

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

// f(get(i), i) for every step-th i up to the end. Loads are under way 64 bytes at a time: a thread has few,
// so to wait for one after the other would take most of the time.
template <class Get, class F> DEVICE void each_of(int i, int end, int step, Get get, F f) {
    typedef decltype(get(0)) Value;
    constexpr int AT_ONCE = 64 / sizeof(Value);
    for (; i < end; i += AT_ONCE * step) {
        Value values[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) values[j] = get(i + j * step < end ? i + j * step : i);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (i + j * step < end) f(values[j], i + j * step);
    }
}

// The block's slice of a row of logits, as keys.
struct Logits {
    const float* row;
    int width, stride;

    // f(key) for each of this thread's.
    template <class F> DEVICE void each(F f) const {
        const int begin = blockIdx.x * SLICE, end = min(begin + SLICE, width);
        const int thread = threadIdx.x, threads = blockDim.x;
        if ((width | stride) % 4 == 0) {
            const auto get = [&](int i) { return at<float4>(row, i); };
            each_of(begin + 4 * thread, end, 4 * threads, get, [&](float4 v, int i) {
                f(key_of(v.x, i));
                f(key_of(v.y, i + 1));
                f(key_of(v.z, i + 2));
                f(key_of(v.w, i + 3));
            });
        } else {
            const auto get = [&](int i) { return row[i]; };
            each_of(begin + thread, end, threads, get, [&](float v, int i) { f(key_of(v, i)); });
        }
    }
};

// The best of this thread's keys of a slice, 0 where it has none.
template <class Slice> DEVICE Key best_of(const Slice& slice) {
    Key best = 0;
    slice.each([&](Key key) { best = Largest()(best, key); });
    return best;
}

// ---------------------------------------------------------------- the best

// best[n, slices]: the best of each slice.
extern "C" __global__ void argmax(const float* logits, Key* best, int n, int width, int stride) {
    wait_for_previous();
    const int row = blockIdx.y;
    if (row >= n) return;
    const Logits slice{logits + int64_t(row) * stride, width, stride};
    const Key mine = block_reduce(best_of(slice), Largest(), Key(0));
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

// To sort is to count: a key's place is how many are better, and for that no thread waits for another one. It
// is quick for few keys, so most are dropped first. A slice is dealt to the threads, and the k-th of the
// threads' best keys is no better than the k-th of all: what is worse than it is dropped. The rest lies in k
// threads, so there is room for it. With two threads for each of the k, and the best spread evenly, it is
// about 1.4 k keys.

constexpr int MOST_KEPT = 4096;  // what k threads have, at most, of the slices that grids.top_k makes

// A block's slice of the keys of a row that an earlier launch has left; those of 0 are none.
struct Found {
    const Key* keys;
    int begin, end;

    template <class F> DEVICE void each(F f) const {
        const auto get = [&](int i) { return keys[i]; };
        each_of(begin + int(threadIdx.x), end, int(blockDim.x), get, [&](Key key, int) { f(key); });
    }
};

// How many of keys[count], in shared memory, are better than one.
DEVICE int count_better(const Key* keys, int count, Key than) {
    int better = 0;
#pragma unroll 8
    for (int i = 0; i < count; i++) better += keys[i] > than;
    return better;
}

// Writes the k best of the block's slice, sorted: as keys, or, when this is the row's only slice, as ids and
// logits. Where there are fewer than k the rest is none: -1 and -infinity.
//
// Of best[n, k, slices] the best of all slices come first, and then all second ones: so the threads of the
// next launch are dealt good and bad ones alike. Blocks have k threads or more.
template <class Slice>
DEVICE void write_best(const Slice& slice, int row, int k, Key* best, int* ids, float* values) {
    __shared__ __align__(16) Key keys[MOST_KEPT];  // first the best of each thread, then those that are kept
    __shared__ Key least;
    __shared__ int kept;
    const Key mine = best_of(slice);
    keys[threadIdx.x] = mine;
    if (threadIdx.x == 0) {
        least = 1;  // every key, if there are not k threads that have one
        kept = 0;
    }
    __syncthreads();
    if (mine > 0 && count_better(keys, blockDim.x, mine) == k - 1) least = mine;
    __syncthreads();
    const Key good = least;
    if (mine >= good) {
        int count = 0;
        slice.each([&](Key key) { count += key >= good; });
        int to = atomicAdd(&kept, count);  // in any order: their places do not depend on it
        slice.each([&](Key key) {
            if (key >= good) keys[to++] = key;
        });
    }
    __syncthreads();
    for (int i = threadIdx.x; i < max(kept, k); i += blockDim.x) {
        const Key key = i < kept ? keys[i] : 0;
        const int place = i < kept ? count_better(keys, kept, key) : i;
        if (place >= k) continue;
        if (gridDim.x > 1) {
            best[(int64_t(row) * k + place) * gridDim.x + blockIdx.x] = key;
        } else {
            ids[int64_t(row) * k + place] = id_of(key);
            values[int64_t(row) * k + place] = logit_of(key);
        }
    }
}

// best[n, k, slices]: the k best of each slice; or ids and values [n, k], when there is one slice.
extern "C" __global__ void __launch_bounds__(1024)
top_k(const float* logits, Key* best, int* ids, float* values, int n, int width, int stride, int k) {
    wait_for_previous();
    const int row = blockIdx.y;
    if (row >= n) return;
    write_best(Logits{logits + int64_t(row) * stride, width, stride}, row, k, best, ids, values);
}

// The same of found[n, count], which are keys that an earlier launch has left, in slices of so many.
extern "C" __global__ void __launch_bounds__(1024)
top_k_of_slices(const Key* found, Key* best, int* ids, float* values, int n, int count, int slice, int k) {
    wait_for_previous();
    const int row = blockIdx.y, begin = blockIdx.x * slice;
    if (row >= n) return;
    const Found keys{found + int64_t(row) * count, begin, min(begin + slice, count)};
    write_best(keys, row, k, best, ids, values);
}

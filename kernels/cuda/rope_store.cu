// What is between products and attention, in one launch, with the same bits as `rope` and `store`.
//
// KEYS, VALUES: the kinds of cells.
// variants: KEYS=F32|F16|BF16|Q8_0 VALUES=F32|F16|BF16|Q8_0
#include "ptx.cuh"
#include "rope.cuh"
#include "store.cuh"

constexpr int THREADS = 128;

// Four values of one of the rows that a token has in the cache; where there is no such row, behind its end.
struct Place {
    int head, value;

    DEVICE Place(int work, int heads, int dim) {
        const int width = padded(dim), units = width / 4;
        head = work / units;
        value = head < heads ? 4 * (work % units) : width;
    }
};

// Rotates q[n, q_heads, key_dim] in place, and k[n, kv_heads, key_dim] on the way into the slots[n] of the
// cells of keys; v[n, kv_heads, value_dim] goes into those of values. Tables and `neighbours` are as for
// `rope`; `dims` is a multiple of 8, key_dim of 4. k stays as it is.
// Blocks [n, pieces of a token]. Whole warps rotate queries, four pairs a thread, or have four values of the
// keys a thread, or of the values: so lanes that share a block's scale do the same.
extern "C" __global__ void __launch_bounds__(THREADS)
rope_store(float* q, const float* q_table, const float* k, const float* k_table, const float* v,
           const int* slots, uint8_t* keys, uint8_t* values, int n, int q_heads, int kv_heads, int key_dim,
           int value_dim, int dims, int neighbours) {
    wait_for_previous();
    const int token = blockIdx.x, half = dims / 2, units = half / 4;
    if (token >= n) return;
    int work = blockIdx.y * THREADS + threadIdx.x;

    const int of_queries = q_heads * units, query_warps = ceil_div(of_queries, WARP);
    if (work < query_warps * WARP) {
        float* const head = q + (int64_t(token) * q_heads + work / units) * key_dim;
        if (work < of_queries) {
            rotate_four(head, q_table + int64_t(token) * dims, half, neighbours, work % units);
        }
        return;
    }
    work -= query_warps * WARP;

    const int slot = slots[token], key_warps = ceil_div(kv_heads * (padded(key_dim) / 4), WARP);
    if (work < key_warps * WARP) {
        const Place place(work, kv_heads, key_dim);
        const float* const head = k + (int64_t(token) * kv_heads + place.head) * key_dim;
        const float* const angles = k_table + int64_t(token) * dims;
        const float4 four = place.value < dims ? rotated_four(head, angles, half, neighbours, place.value)
                                               : load_four(head, place.value, key_dim);
        store_four<cells::KEYS>(keys, slot, kv_heads, place.head, key_dim, place.value, four);
        return;
    }

    const Place place(work - key_warps * WARP, kv_heads, value_dim);
    const float* const row = v + (int64_t(token) * kv_heads + place.head) * value_dim;
    const float4 four = load_four(row, place.value, value_dim);
    store_four<cells::VALUES>(values, slot, kv_heads, place.head, value_dim, place.value, four);
}

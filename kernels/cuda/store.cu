// Rows of new keys or values into the KV cache.
//
// KIND: of the cells.
// variants: KIND=F32|F16|BF16|Q8_0
#include "store.cuh"

typedef cells::KIND Kind;

constexpr int WARPS = 4;

// x[n, heads, dim] into the slots[n] of the cells; a warp a row.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
store(const float* x, const int* slots, uint8_t* cells, int n, int heads, int dim) {
    wait_for_previous();
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (row >= int64_t(n) * heads) return;
    const int slot = slots[row / heads], head = row % heads;
    for (int first = 0; first < padded(dim); first += 4 * WARP) {
        const int value = first + 4 * (threadIdx.x % WARP);
        store_four<Kind>(cells, slot, heads, head, dim, value, load_four(x + row * dim, value, dim));
    }
}

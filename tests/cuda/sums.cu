// For tests of the emulator: the reductions of reductions.cuh.
#include "reductions.cuh"

constexpr int WARPS = 4;

extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    sums(const float* x, float* sum, float* most, int k) {
    const float* row = x + blockIdx.x * k;
    float total = 0.0f, largest = -infinity();
    for (int i = threadIdx.x; i < k; i += WARPS * WARP) total += row[i], largest = fmaxf(largest, row[i]);
    total = block_reduce(total, Sum(), 0.0f);
    largest = block_reduce(largest, Largest(), -infinity());
    // The same again: calls must not race with each other.
    total = block_reduce(total, Sum(), 0.0f) / (WARPS * WARP);
    largest = block_reduce(largest, Largest(), -infinity());
    if (threadIdx.x == 0) sum[blockIdx.x] = total, most[blockIdx.x] = largest;
}

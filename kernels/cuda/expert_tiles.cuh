// Which tile of which expert a block computes, found on the device: how many pairs an expert has, the host
// never knows.
#pragma once
#include "common.cuh"

struct ExpertTile {
    int expert;        // -1: there are fewer tiles than blocks
    int first, count;  // pairs
};

// Tile number `tile` when each expert's pairs, starts[expert] to starts[expert + 1], are cut into tiles of
// `size`: found by a warp, which counts 32 experts at a time.
DEVICE ExpertTile find_expert_tile(const int* starts, int experts, int tile, int size) {
    const int lane = threadIdx.x % WARP;
    for (int base = 0; base < experts; base += WARP) {
        const int expert = min(base + lane, experts - 1);
        const int first = starts[expert], last = starts[expert + 1];
        const int tiles = base + lane < experts ? ceil_div(last - first, size) : 0;
        int up_to = tiles;  // of the experts from base to this lane's
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            const int below = __shfl_up_sync(ALL_LANES, up_to, step);
            if (lane >= step) up_to += below;
        }
        const uint32_t beyond = __ballot_sync(ALL_LANES, tile < up_to);
        if (beyond != 0) {
            const int owner = __ffs(beyond) - 1;
            const int before = __shfl_sync(ALL_LANES, up_to - tiles, owner);
            const int begin = __shfl_sync(ALL_LANES, first, owner) + (tile - before) * size;
            return {base + owner, begin, min(size, __shfl_sync(ALL_LANES, last, owner) - begin)};
        }
        tile -= __shfl_sync(ALL_LANES, up_to, WARP - 1);
    }
    return {-1, 0, 0};
}

// The block's. It lies in shared memory, as registers are for the products that it is kept over.
DEVICE const ExpertTile& expert_tile(const int* starts, int experts, int size) {
    __shared__ ExpertTile found;
    if (threadIdx.x < WARP) {
        const ExpertTile tile = find_expert_tile(starts, experts, blockIdx.x, size);
        if (threadIdx.x == 0) found = tile;
    }
    __syncthreads();
    return found;
}

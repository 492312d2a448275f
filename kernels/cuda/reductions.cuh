// A value of each thread to one, which all threads get, by any operation and over blocks of any size.
//
// The order of operations depends on the number of threads only: results have the same bits in every run.
#pragma once
#include "common.cuh"

struct Sum {
    DEVICE float operator()(float a, float b) const { return a + b; }
};

struct Largest {
    DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
    DEVICE uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? b : a; }
};

template <class T, class Op> DEVICE T warp_reduce(T v, Op op) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) v = op(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

// Of a block of one dimension and whole warps; `nothing` is what changes no value.
template <class T, class Op> DEVICE T block_reduce(T v, Op op, T nothing) {
    __shared__ T of_warps[WARP];
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    v = warp_reduce(v, op);
    if (warps == 1) return v;
    __syncthreads();  // what a reduction before this one left there has been read
    if (lane == 0) of_warps[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_reduce(lane < warps ? of_warps[lane] : nothing, op);
}

// For tests of the emulator: what nvcc has built in, for the host to compare with its own. A thread, a
// result.
#include "common.cuh"

#define THREAD (blockIdx.x * blockDim.x + threadIdx.x)

extern "C" __global__ void half_to_float(const __half* x, float* y) { y[THREAD] = __half2float(x[THREAD]); }
extern "C" __global__ void float_to_half(const float* x, __half* y) { y[THREAD] = __float2half(x[THREAD]); }
extern "C" __global__ void bfloat16_to_float(const __nv_bfloat16* x, float* y) {
    y[THREAD] = __bfloat162float(x[THREAD]);
}
extern "C" __global__ void float_to_bfloat16(const float* x, __nv_bfloat16* y) {
    y[THREAD] = __float2bfloat16(x[THREAD]);
}
extern "C" __global__ void half_arithmetic(const __half2* x, __half2* y) {
    const __half2 a = x[2 * THREAD], b = x[2 * THREAD + 1];
    y[4 * THREAD] = __hadd2(a, b), y[4 * THREAD + 1] = __hmul2(a, b);
    y[4 * THREAD + 2] = __hfma2(a, b, b), y[4 * THREAD + 3] = __hsub2(a, b);
}
extern "C" __global__ void float_to_int(const float* x, int* y) {
    y[3 * THREAD] = __float2int_rn(x[THREAD]);
    y[3 * THREAD + 1] = __float2int_rz(x[THREAD]);
    y[3 * THREAD + 2] = __float2int_rd(x[THREAD]);
}

extern "C" __global__ void bytes(const int* a, const int* b, int* y) {
    const int i = THREAD;
    const unsigned u = a[i], v = b[i];
    int* out = y + 8 * i;
    out[0] = __dp4a(a[i], b[i], -5), out[1] = __dp4a(u, v, 5u);
    out[2] = __vsub4(u, v), out[3] = __vsubss4(u, v), out[4] = __vadd4(u, v),
    out[5] = __vcmpeq4(u, v & 0x00ffff00u);
    out[6] = __byte_perm(u, v, 0x7250), out[7] = __byte_perm(u, v, 0x8c4a);
}

extern "C" __global__ void bits(const int* a, const int* b, int* y) {
    const int i = THREAD;
    const unsigned u = a[i], v = b[i];
    int* out = y + 8 * i;
    out[0] = __popc(u), out[1] = __clz(u), out[2] = __ffs(u), out[3] = __brev(u);
    out[4] = __funnelshift_r(u, v, 5), out[5] = __funnelshift_l(u, v, 37), out[6] = __umulhi(u, v);
    out[7] = __mulhi(a[i], b[i]);
}

extern "C" __global__ void shuffles(int* y) {
    const int lane = threadIdx.x;
    int* out = y + 8 * lane;
    out[0] = __shfl_sync(ALL_LANES, lane, lane / 2), out[1] = __shfl_sync(ALL_LANES, lane, 3, 8);
    out[2] = __shfl_xor_sync(ALL_LANES, lane, 5), out[3] = __shfl_down_sync(ALL_LANES, lane, 3, 16);
    out[4] = __shfl_up_sync(ALL_LANES, lane, 2, 8), out[5] = __ballot_sync(ALL_LANES, lane % 3 == 0);
    out[6] = __any_sync(ALL_LANES, lane == 7), out[7] = __all_sync(ALL_LANES, lane < 31);
}

extern "C" __global__ void votes(int* y) {
    const int i = threadIdx.x;
    int* out = y + 4 * i;
    out[0] = __syncthreads_count(i % 3 == 0), out[1] = __syncthreads_and(i < 64),
    out[2] = __syncthreads_or(i == 63);
    out[3] = __match_any_sync(ALL_LANES, i % 5);
}

extern "C" __global__ void atomics(int* y,
                                   float* sum) {  // each thread of all blocks adds to, or takes part in
    const int i = THREAD;
    atomicAdd(y, 1), atomicMax(y + 1, i), atomicMin(y + 2, -i), atomicOr(y + 3, 1 << i % 32);
    atomicXor(y + 4, i), atomicCAS(y + 5, 0, 7), atomicAdd(sum, 0.5f);
    y[6 + i] = atomicExch(y + 6 + i, 9);
}

#if __CUDA_ARCH__ >= 800
extern "C" __global__ void reductions(const int* x, int* y) {
    const int v = x[threadIdx.x];
    int* out = y + 8 * threadIdx.x;
    out[0] = __reduce_add_sync(ALL_LANES, v), out[1] = __reduce_min_sync(ALL_LANES, v);
    out[2] = __reduce_max_sync(ALL_LANES, v), out[3] = __reduce_min_sync(ALL_LANES, unsigned(v));
    out[4] = __reduce_max_sync(ALL_LANES, unsigned(v)), out[5] = __reduce_and_sync(ALL_LANES, unsigned(v));
    out[6] = __reduce_or_sync(ALL_LANES, unsigned(v)), out[7] = __reduce_xor_sync(ALL_LANES, unsigned(v));
}
#endif

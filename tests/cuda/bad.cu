// For tests of the emulator: kernels with one mistake each, and some that only look like it.
#include "ptx.cuh"

// Mistakes with barriers.

extern "C" __global__ void order_of_warps(float* y) {  // in global memory
    y[threadIdx.x % WARP] = threadIdx.x;
}

extern "C" __global__ void no_barrier_after_writes(float* y) {
    y[threadIdx.x] = threadIdx.x;
    if (threadIdx.x == 0) y[0] += y[127];
}

extern "C" __global__ void too_early(float* y) {  // the second round overwrites what others may still read
    __shared__ float s[128];
    for (int i = 0; i < 2; i++) {
        s[threadIdx.x] = threadIdx.x;
        __syncthreads();
        y[threadIdx.x] = s[127 - threadIdx.x];
    }
}

extern "C" __global__ void no_barrier(float* y) {
    __shared__ float s[128];
    s[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = s[(threadIdx.x + 37) % 128];
}

extern "C" __global__ void no_warp_barrier(float* y) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;
    for (int step = 16; step; step /= 2)
        if (threadIdx.x < step) s[threadIdx.x] += s[threadIdx.x + step];
    if (threadIdx.x == 0) y[0] = s[0];
}

extern "C" __global__ void divergent_barrier(float* y) {
    if (threadIdx.x < 10) __syncthreads();
    y[threadIdx.x] = 1;
    if (threadIdx.x >= 10) __syncthreads();
}

extern "C" __global__ void barrier_of_some(float* y) {
    if (threadIdx.x < 16) __syncthreads();
    else y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.0f, 1);
}

extern "C" __global__ void divergent_shuffle(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.0f, 1);
    else y[threadIdx.x] = __shfl_down_sync(ALL_LANES, 1.0f, 1);
}

extern "C" __global__ void shuffle_from_outside(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

extern "C" __global__ void mask_without_me(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0x00ffu, 1.0f, 1);
}

// Mistakes with memory.

extern "C" __global__ void write_past(float* y, int n) {
    if (threadIdx.x <= n) y[threadIdx.x] = 1;
}

extern "C" __global__ void read_past(const float* x, float* y, int n) { y[threadIdx.x] = x[threadIdx.x + n]; }

extern "C" __global__ void write_before(float* y) { y[int(threadIdx.x) - 2000] = 1; }

extern "C" __global__ void past_shared(float* y, int n) {
    __shared__ float s[32];
    float* p = s;
    p[threadIdx.x + n] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void before_shared(float* y) {
    __shared__ float s[32];
    float* p = s;
    p[int(threadIdx.x) - 1] = 1;
    y[threadIdx.x] = 0;
}

extern "C" __global__ void past_dynamic(float* y) {
    extern __shared__ float s[];
    s[threadIdx.x + 1] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void index_outside(float* y, int n) {
    __shared__ float s[4][8];
    s[threadIdx.x / 8][threadIdx.x % 8 + n] = 1;
    y[threadIdx.x] = 0;
}

extern "C" __global__ void misaligned(const float* x, float4* y) {
    y[threadIdx.x] = *reinterpret_cast<const float4*>(x + 1 + 4 * threadIdx.x);
}

extern "C" __global__ void past_local(float* y, int n) {
    float a[10];
    for (int i = 0; i < 10; i++) a[i] = i;
    float* p = a + n;
    y[threadIdx.x] = p[threadIdx.x];
}

extern "C" __global__ void fresh_shared(float* y) {
    __shared__ float s[32];
    y[threadIdx.x] = s[threadIdx.x] * 0.0f;
}

extern "C" __global__ void fresh_dynamic(float* y) {
    extern __shared__ float s[];
    y[threadIdx.x] = s[threadIdx.x] * 0.0f;
}

extern "C" __global__ void fresh_variable(float* y, int n) {
    float sums[4];
    sums[n] = 0.0f;
    y[threadIdx.x] = sums[n + 1];
}

extern "C" __global__ void too_much_shared(float* y) {
    __shared__ float s[13000];
    s[threadIdx.x] = 1;
    y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void full_stack(float* y, int n) {
    float a[40000];
    for (int i = 0; i < 40000; i++) a[i] = i + n;
    __syncwarp();
    y[threadIdx.x] = a[(threadIdx.x * 977 + n) % 40000];
}

#if __CUDA_ARCH__ >= 800
extern "C" __global__ void copies_not_awaited(const float* x, float* y) {
    __shared__ __align__(16) float s[128];
    cp_async_16(s + 4 * threadIdx.x, x + 4 * threadIdx.x);
    cp_async_commit();
    __syncthreads();
    for (int i = 0; i < 4; i++) y[4 * threadIdx.x + i] = s[4 * threadIdx.x + i];
    cp_async_wait<0>();
}

extern "C" __global__ void copies_not_synchronized(const float* x, float* y) {
    __shared__ __align__(16) float s[128];
    cp_async_16(s + 4 * threadIdx.x, x + 4 * threadIdx.x);
    cp_async_commit();
    cp_async_wait<0>();
    y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void copies_left(const float* x, float* y) {
    __shared__ __align__(16) float s[128];
    cp_async_16(s + 4 * threadIdx.x, x + 4 * threadIdx.x);
    y[threadIdx.x] = 1;
}

extern "C" __global__ void copy_to_elsewhere(const float* x, float* y) { cp_async_16(y, x); }
#endif

// Mistakes with numbers.

extern "C" __global__ void shift_too_far(int* y, int n) { y[threadIdx.x] = 1 << n; }

extern "C" __global__ void divide_by_zero(int* y, int n) { y[threadIdx.x] = threadIdx.x / n; }

// What a launch can be wrong about.

extern "C" __global__ void __launch_bounds__(64) arguments(float* y, int a, long long b, float c) {
    if (threadIdx.x == 0) y[0] = a + b + c;
}

extern "C" __global__ void unsigned_parameter(float* y, unsigned n) { y[0] = n; }

// No mistakes.

extern "C" __global__ void halves_of_a_warp(int* y) {  // each with a number of shuffles of its own
    int v = threadIdx.x;
    if (threadIdx.x < 16)
        for (int i = 0; i < 3; i++) v += __shfl_xor_sync(0x0000ffffu, v, 1);
    else v += __shfl_xor_sync(0xffff0000u, v, 2);
    __syncwarp();
    y[threadIdx.x] = __shfl_down_sync(ALL_LANES, v, 1) + __popc(__ballot_sync(ALL_LANES, v & 1)) * 1000;
}

extern "C" __global__ void early_exit(int* y, int n) {  // before a barrier of the others
    if (threadIdx.x >= n) return;
    __shared__ int s[128];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = s[n - 1 - threadIdx.x];
}

// The last block sums what all wrote.
extern "C" __global__ void last_block(float* y, int* count, float* sum) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        y[blockIdx.x] = blockIdx.x + 1;
        __threadfence();
        last = atomicAdd(count, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x) return;
    *sum = 0;
    for (int i = 0; i < gridDim.x; i++) *sum += __ldcg(y + i);
}

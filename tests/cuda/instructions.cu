// For tests of ptx.cuh: a kernel for each instruction, whose registers the host gives and gets.
#include "ptx.cuh"

// a[32][NA], b[32][NB] and d[32][ND]: a lane's registers lie together.
#define PRODUCT(NAME, FUNCTION, D, ND, NA, NB)                                    \
    extern "C" __global__ void NAME(const uint32_t* a, const uint32_t* b, D* d) { \
        uint32_t ra[NA], rb[NB];                                                  \
        D rd[ND];                                                                 \
        for (int i = 0; i < NA; i++) ra[i] = a[threadIdx.x * NA + i];             \
        for (int i = 0; i < NB; i++) rb[i] = b[threadIdx.x * NB + i];             \
        for (int i = 0; i < ND; i++) rd[i] = d[threadIdx.x * ND + i];             \
        FUNCTION(rd, ra, rb);                                                     \
        for (int i = 0; i < ND; i++) d[threadIdx.x * ND + i] = rd[i];             \
    }
PRODUCT(m8n8k16_s8, ptx::mma_m8n8k16_s8, int, 2, 1, 1)
PRODUCT(m16n8k8_f16, ptx::mma_m16n8k8_f16, float, 4, 2, 1)
PRODUCT(m16n8k16_s8, mma_m16n8k16_s8, int, 4, 2, 1)
PRODUCT(m16n8k32_s8, mma_m16n8k32_s8, int, 4, 4, 2)
PRODUCT(m16n8k16_f16, mma_m16n8k16_f16, float, 4, 4, 2)
#if __CUDA_ARCH__ >= 800
PRODUCT(m16n8k16_bf16, mma_m16n8k16_bf16, float, 4, 4, 2)
#endif

// Lane i gives row i of COUNT matrices that lie one after the other at x, and gets registers[i][COUNT].
#define LOAD(COUNT, TRANSPOSED)                                                                        \
    extern "C" __global__ void ldmatrix_x##COUNT##TRANSPOSED##_(const uint4* x, uint32_t* registers) { \
        __shared__ uint4 rows[8 * COUNT];                                                              \
        if (threadIdx.x < 8 * COUNT) rows[threadIdx.x] = x[threadIdx.x];                               \
        __syncwarp();                                                                                  \
        uint32_t r[COUNT];                                                                             \
        ldmatrix_x##COUNT##TRANSPOSED(r, rows + threadIdx.x % (8 * COUNT));                            \
        for (int i = 0; i < COUNT; i++) registers[threadIdx.x * COUNT + i] = r[i];                     \
    }
LOAD(1, )
LOAD(2, )
LOAD(4, )
LOAD(1, _trans)
LOAD(2, _trans)
LOAD(4, _trans)

// Three groups of copies, 16 bytes a thread: y[0] when one may be left, y[1] when none may.
extern "C" __global__ void copies(const uint4* x, uint4* y) {
    __shared__ uint4 rows[3][WARP];
    for (int i = 0; i < 3; i++) {
        cp_async_16(&rows[i][threadIdx.x], x + i * WARP + threadIdx.x, i < 2 || threadIdx.x % 2);
        cp_async_commit();
    }
    cp_async_wait<1>();
    __syncwarp();
    y[threadIdx.x] = rows[1][WARP - 1 - threadIdx.x];
    cp_async_wait<0>();
    __syncwarp();
    y[WARP + threadIdx.x] = rows[2][WARP - 1 - threadIdx.x];
}

extern "C" __global__ void prefetch(const float* x, float* y) {
    prefetch_l2(x + 31 - threadIdx.x);
    y[threadIdx.x] = x[threadIdx.x];
}

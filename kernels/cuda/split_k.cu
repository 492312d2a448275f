// The sums that matmul leaves where it splits k, added up in their order.
#include "common.cuh"
#include "ptx.cuh"

// y[n, rows] = (the sum of partial[splits, n, rows] over the splits) * scale + bias[rows], which may be null.
// Grid: blocks of rows, n.
extern "C" __global__ void sum_splits(const float* __restrict__ partial, int splits, int n, int rows,
                                      float* __restrict__ y, float scale, const float* __restrict__ bias) {
    wait_for_previous();
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const long long at = (long long)blockIdx.y * rows + row;
    float sum = 0.0f;
    for (int split = 0; split < splits; split++) sum += partial[split * (long long)n * rows + at];
    y[at] = sum * scale + (bias ? bias[row] : 0.0f);
}

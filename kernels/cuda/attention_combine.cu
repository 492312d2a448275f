// The parts of a context, each with its own softmax, to one: what follows attention_prefill where it was
// launched with several parts. attention_decode does it itself.
#include "parts.cuh"
#include "ptx.cuh"

// y[rows, dim] from sums[rows, parts, dim] and states[rows, parts]; rows are n * heads. A block a row.
extern "C" __global__ void __launch_bounds__(256)
attention_combine(const float* sums, const float2* states, const float* sinks, float* y, int rows, int heads,
                  int parts, int dim) {
    wait_for_previous();
    const int row = blockIdx.x;
    if (row >= rows) return;
    const Parts all = {states + int64_t(row) * parts, sums + int64_t(row) * parts * dim, parts, dim};
    const float largest = all.largest();
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float total;
        const float sum = all.sum<float>(i, largest, total);
        y[int64_t(row) * dim + i] = sum * normalizer(largest, total, sinks, row % heads);
    }
}

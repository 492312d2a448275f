// The parts of a context, each with its own softmax, to one: what follows attention_decode and
// attention_prefill where they were launched with several parts.
#include "ptx.cuh"
#include "softmax.cuh"

constexpr int MOST_PARTS = 128;

// y[rows, dim] from sums[rows, parts, dim] and states[rows, parts]; rows are n * heads. A block a row.
extern "C" __global__ void __launch_bounds__(256)
attention_combine(const float* sums, const float2* states, const float* sinks, float* y, int rows, int heads,
                  int parts, int dim) {
    wait_for_previous();
    __shared__ float weights[MOST_PARTS];
    const int row = blockIdx.x;
    if (row >= rows) return;
    sums += int64_t(row) * parts * dim, states += int64_t(row) * parts;
    float largest = NEVER, total = 0.0f;
    for (int i = 0; i < parts; i++) largest = fmaxf(largest, states[i].x);
    for (int i = threadIdx.x; i < parts; i += blockDim.x) weights[i] = exp2f(states[i].x - largest);
    __syncthreads();
    for (int i = 0; i < parts; i++) total += states[i].y * weights[i];
    const float by = normalizer(largest, total, sinks, row % heads);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = 0.0f;
        for (int part = 0; part < parts; part++) sum += sums[int64_t(part) * dim + i] * weights[part];
        y[int64_t(row) * dim + i] = sum * by;
    }
}

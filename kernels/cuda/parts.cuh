// Parts of a softmax, to one: those of the context, which blocks leave, or those that the warps of one have.
#pragma once
#include "elements.cuh"
#include "softmax.cuh"

// Each with a softmax of its own.
struct Parts {
    const float2* states;  // [count] { largest score, total }
    const float* sums;     // [count, stride] of weighted values
    int count, stride;

    // The largest score of all. By whole warps.
    DEVICE float largest() const {
        float most = NEVER;
        for (int i = threadIdx.x % WARP; i < count; i += WARP) most = fmaxf(most, states[i].x);
        return warp_max(most);
    }

    // The sum of all, of a value or of four from `first` on. In the order of the parts, whoever left them
    // when: results have the same bits in every run.
    template <class V> DEVICE V sum(int first, float largest, float& total) const {
        constexpr int AT_ONCE = 8;  // loads
        V sum = {};
        total = 0.0f;
        for (int begin = 0; begin < count; begin += AT_ONCE) {
            float2 part[AT_ONCE];
            V value[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (begin + i >= count) continue;
                part[i] = states[begin + i], value[i] = at<V>(sums, int64_t(begin + i) * stride + first);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (begin + i >= count) continue;
                const float weight = exp2f(part[i].x - largest);
                total += part[i].y * weight;
                sum = map([=](float a, float b) { return a + b * weight; }, sum, value[i]);
            }
        }
        return sum;
    }
};

// Whether this block is the last of `count` to come here: then it sees what all of them have written. The
// counter, which was 0, is 0 again behind it.
DEVICE bool comes_last(unsigned* counter, int count) {
    __shared__ bool last;
    __syncthreads();  // the whole block has written
    if (threadIdx.x == 0) {
        __threadfence();  // that comes before the counter changes,
        last = atomicInc(counter, count - 1) == count - 1;
        __threadfence();  // and what others have written is read behind it
    }
    __syncthreads();
    return last;
}

// Softmax in steps and in parts (Dao et al. 2022).
//
// It is of powers of two: scores come multiplied by log2(e). What has been seen has a largest score, and a
// total of the weights 2^(score - largest + PEAK). With PEAK, small weights are no subnormal halves.
#pragma once
#include "common.cuh"

constexpr float LOG2_E = 1.44269504f;
constexpr float NEVER = -1e30f;  // the score of what is not seen
constexpr float PEAK = 4.0f;

// What the values' sum is multiplied by, when all is summed. The sink is one more score, with no value.
DEVICE float normalizer(float largest, float total, const float* sinks, int head) {
    if (!sinks) return 1.0f / total;
    const float sink = sinks[head] * LOG2_E, top = fmaxf(largest, sink), weight = exp2f(largest - top);
    return weight / (total * weight + exp2f(sink - top + PEAK));
}

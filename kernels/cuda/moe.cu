// Mixture of experts: who goes to which expert. PER_LANE * WARP is the most experts there may be.
// variants: PER_LANE=1|2|4|8|16
//
// A pair is one of a token's chosen experts: pair = token * used + choice. Pairs are sorted by expert, so
// that an expert's rows lie side by side. Both kernels have blocks of (WARP, any number of warps).
#include "ptx.cuh"
#include "reductions.cuh"

// A probability and its expert as one number: larger is more probable, or of equals the lower expert. 0 is
// less than all; what is no number is more than all, so `used` experts are found whatever the logits are.
DEVICE uint64_t candidate(float probability, int expert) {
    return uint64_t(__float_as_uint(probability)) << 32 | uint32_t(~expert);
}

// Softmax of a token's logits: this lane's are experts lane, lane + WARP, ...
DEVICE void softmax(const float* logits, int experts, int lane, float (&p)[PER_LANE]) {
    float largest = -infinity(), total = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        p[i] = i * WARP + lane < experts ? logits[i * WARP + lane] : -infinity();
        largest = fmaxf(largest, p[i]);
    }
    largest = warp_reduce(largest, Largest());
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        p[i] = expf(p[i] - largest);
        total += p[i];
    }
    total = warp_sum(total);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) p[i] /= total;
}

// chosen[n, used]: each token's most probable experts, the best first; weights[n, used]: their probabilities,
// which `normalize` makes sum to 1. A warp a token.
extern "C" __global__ void route(const float* logits, int* chosen, float* weights, int n, int experts,
                                 int used, int normalize) {
    wait_for_previous();
    const int token = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (token >= n) return;
    float p[PER_LANE], total = 0.0f;
    softmax(logits + int64_t(token) * experts, experts, lane, p);
    uint64_t candidates[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int expert = i * WARP + lane;
        candidates[i] = expert < experts ? candidate(p[i], expert) : 0;
    }
    for (int choice = 0; choice < used; choice++) {
        uint64_t best = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) best = Largest()(best, candidates[i]);
        best = warp_reduce(best, Largest());
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) candidates[i] = candidates[i] == best ? 0 : candidates[i];
        const float weight = __uint_as_float(uint32_t(best >> 32));
        total += weight;
        if (lane == 0) {
            chosen[token * used + choice] = int(~uint32_t(best));
            weights[token * used + choice] = weight;
        }
    }
    __syncwarp();
    for (int i = lane; normalize && i < used; i += WARP) weights[token * used + i] /= total;
}

// starts[experts + 1]: where each expert's pairs begin; tokens[place]: whose pair is there; places[pair].
//
// A warp an expert, which looks at all pairs: it counts those of the experts before it, and then its own in
// order. That is more reading than a sort in one block would need, but no warp waits for another one.
extern "C" __global__ void sort(const int* chosen, int* starts, int* tokens, int* places, int n,
                                int experts, int used) {
    wait_for_previous();
    const int expert = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x, pairs = n * used;
    if (expert >= experts) return;
    int place = 0;
#pragma unroll 4
    for (int pair = lane; pair < pairs; pair += WARP) place += chosen[pair] < expert;
    place = warp_sum(place);
    if (lane == 0) {
        starts[expert] = place;
        if (expert == experts - 1) starts[experts] = pairs;
    }
#pragma unroll 4
    for (int first = 0; first < pairs; first += WARP) {
        const int pair = first + lane;
        const bool mine = pair < pairs && chosen[pair] == expert;
        const uint32_t ours = __ballot_sync(ALL_LANES, mine);
        if (mine) {
            const int to = place + __popc(ours & ((1u << lane) - 1));
            tokens[to] = pair / used;
            places[pair] = to;
        }
        place += __popc(ours);
    }
}

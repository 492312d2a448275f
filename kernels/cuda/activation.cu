// Activations of the feed-forward, alone or times a second input (gated linear units, Shazeer 2020).
//
// ACTIVATION is the name of one of the functions below.
// variants: ACTIVATION=silu|gelu|gelu_erf|relu2
#include "elements.cuh"
#include "ptx.cuh"

// x / (1 + e^-x); below -88 the exponential is infinite and the result -0, as it should be.
DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }

// x * (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), written so that nothing cancels where it is
// small: (1 + tanh(u)) / 2 = 1 / (1 + e^-2u).
DEVICE float gelu(float x) {
    const float u = 0.79788456080286535588f * x * (1.0f + 0.044715f * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

// x times the normal distribution function of x, by the complement, which does not cancel either.
DEVICE float gelu_erf(float x) { return 0.5f * x * erfcf(-0.70710678118654752440f * x); }

DEVICE float relu2(float x) { return x < 0.0f ? 0.0f : x * x; }

// y = activation(x); y may be x.
extern "C" __global__ void activate(const float* x, float* y, long long total) {
    wait_for_previous();
    map_elements(total, y, [](float a) { return ACTIVATION(a); }, x);
}

// y = activation(gate) * up; y may be gate or up.
extern "C" __global__ void activate_gated(const float* gate, const float* up, float* y, long long total) {
    wait_for_previous();
    map_elements(total, y, [](float g, float u) { return ACTIVATION(g) * u; }, gate, up);
}

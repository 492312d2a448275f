// Rotary embedding (Su et al. 2021): the angles of a batch's positions once, then queries and keys in each
// layer.
#include "elements.cuh"
#include "ptx.cuh"

// The cosine and sine of an angle of at most an eighth of a turn: Taylor series, less than 2e-9 is left out.
DEVICE float2 cosine_sine(float r) {
    const float s = r * r;
    const float c0 = -1.0f / 2, c1 = 1.0f / 24, c2 = -1.0f / 720, c3 = 1.0f / 40320, c4 = -1.0f / 3628800;
    const float s0 = -1.0f / 6, s1 = 1.0f / 120, s2 = -1.0f / 5040, s3 = 1.0f / 362880;
    const float cosine = 1.0f + s * (c0 + s * (c1 + s * (c2 + s * (c3 + s * c4))));
    return make_float2(cosine, r + r * s * (s0 + s * (s1 + s * (s2 + s * s3))));
}

// The cosine and sine of position * frequency. In float32 an angle of 1e5 has two digits left behind the
// point, so quarter turns are taken off in float64. That takes few operations, where cosines take many.
DEVICE float2 direction(int position, float frequency) {
    const double quarters = double(position) * double(frequency) * 0.63661977236758134308;  // 2 / pi
    const double whole = rint(quarters);
    const float2 rest = cosine_sine(float((quarters - whole) * 1.57079632679489661923));
    switch (int64_t(whole) & 3) {
        case 0: return rest;
        case 1: return make_float2(-rest.y, rest.x);
        case 2: return make_float2(-rest.x, -rest.y);
        default: return make_float2(rest.y, -rest.x);
    }
}

// table[n, dims / 2, 2]: cosine and sine of position * frequencies[pair], times a magnitude. A slope other
// than 0 makes it grow with the position: 1 + slope * log(1 + floor(position / period)). A block a position.
extern "C" __global__ void rope_table(const int* positions, const float* frequencies, float* table, int n,
                                      int dims, float magnitude, float slope, float period) {
    wait_for_previous();
    const int token = blockIdx.x, half = dims / 2;
    if (token >= n) return;
    const int position = positions[token];
    if (slope != 0.0f) {
        magnitude *= 1.0f + slope * logf(1.0f + float(floor(double(position) / double(period))));
    }
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        const float2 turn = direction(position, frequencies[i]);
        const float2 scaled = make_float2(turn.x * magnitude, turn.y * magnitude);
        at<float2>(table, int64_t(token) * 2 * half + 2 * i) = scaled;
    }
}

DEVICE void rotate(float& a, float& b, float cosine, float sine) {
    const float before = a;
    a = before * cosine - b * sine;
    b = before * sine + b * cosine;
}

// Pairs 4 i to 4 i + 3 of a head.
DEVICE void rotate_four(float* head, const float* angles, int half, bool neighbours, int i) {
    float4& a = neighbours ? at<float4>(head, 8 * i) : at<float4>(head, 4 * i);
    float4& b = neighbours ? at<float4>(head, 8 * i + 4) : at<float4>(head, half + 4 * i);
    const float4 first = at<float4>(angles, 8 * i), last = at<float4>(angles, 8 * i + 4);
    float4 u = a, v = b;
    if (neighbours) {
        rotate(u.x, u.y, first.x, first.y);
        rotate(u.z, u.w, first.z, first.w);
        rotate(v.x, v.y, last.x, last.y);
        rotate(v.z, v.w, last.z, last.w);
    } else {
        rotate(u.x, v.x, first.x, first.y);
        rotate(u.y, v.y, first.z, first.w);
        rotate(u.z, v.z, last.x, last.y);
        rotate(u.w, v.w, last.z, last.w);
    }
    a = u;
    b = v;
}

DEVICE void rotate_one(float* head, const float* angles, int half, bool neighbours, int i) {
    float& a = head[neighbours ? 2 * i : i];
    float& b = head[neighbours ? 2 * i + 1 : half + i];
    rotate(a, b, angles[2 * i], angles[2 * i + 1]);
}

// Rotates pairs of the first `dims` values of each head of q[n, q_heads, head_dim], and of k in the same
// launch, in place; each has a table, as queries may grow with the position. k_heads may be 0.
// A pair is two neighbours (llama.cpp's NORM), or one of each half of the dims (NEOX).
// Blocks [n, pieces of a token]; a thread rotates four pairs where `dims` allows, else one.
extern "C" __global__ void rope(float* q, const float* q_table, int q_heads, float* k, const float* k_table,
                                int k_heads, int n, int head_dim, int dims, int neighbours) {
    wait_for_previous();
    const int half = dims / 2, token = blockIdx.x;
    const bool wide = half % 4 == 0 && head_dim % 4 == 0;
    const int units = wide ? half / 4 : half;
    const int work = blockIdx.y * blockDim.x + threadIdx.x;
    if (token >= n || work >= (q_heads + k_heads) * units) return;
    int head = work / units;
    const bool is_query = head < q_heads;
    if (!is_query) head -= q_heads;
    float* x = is_query ? q : k;
    x += (int64_t(token) * (is_query ? q_heads : k_heads) + head) * head_dim;
    const float* angles = (is_query ? q_table : k_table) + int64_t(token) * dims;
    if (wide) {
        rotate_four(x, angles, half, neighbours, work % units);
    } else {
        rotate_one(x, angles, half, neighbours, work % units);
    }
}

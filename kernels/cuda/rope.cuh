// Rotating pairs of a head: two neighbours (llama.cpp's NORM), or one of each half of the dims (NEOX).
#pragma once
#include "elements.cuh"

// What is rounded once is not left to the compiler: so all kernels have the same bits.
DEVICE void rotate(float& a, float& b, float cosine, float sine) {
    const float before = a;
    a = fmaf(before, cosine, -(b * sine));
    b = fmaf(b, cosine, before * sine);
}

// Pairs 4 i to 4 i + 3 of a head: eight values, which lie four and four at two places of it.
struct FourPairs {
    int place, other;
    float4 first, second;

    DEVICE FourPairs(const float* head, const float* angles, int half, bool neighbours, int i)
        : place(neighbours ? 8 * i : 4 * i), other(neighbours ? 8 * i + 4 : half + 4 * i),
          first(at<float4>(head, place)), second(at<float4>(head, other)) {
        const float4 s = at<float4>(angles, 8 * i), t = at<float4>(angles, 8 * i + 4);
        if (neighbours) {
            rotate(first.x, first.y, s.x, s.y);
            rotate(first.z, first.w, s.z, s.w);
            rotate(second.x, second.y, t.x, t.y);
            rotate(second.z, second.w, t.z, t.w);
        } else {
            rotate(first.x, second.x, s.x, s.y);
            rotate(first.y, second.y, s.z, s.w);
            rotate(first.z, second.z, t.x, t.y);
            rotate(first.w, second.w, t.z, t.w);
        }
    }
};

// In place.
DEVICE void rotate_four(float* head, const float* angles, int half, bool neighbours, int i) {
    const FourPairs pairs(head, angles, half, neighbours, i);
    at<float4>(head, pairs.place) = pairs.first;
    at<float4>(head, pairs.other) = pairs.second;
}

DEVICE void rotate_one(float* head, const float* angles, int half, bool neighbours, int i) {
    float& a = head[neighbours ? 2 * i : i];
    float& b = head[neighbours ? 2 * i + 1 : half + i];
    rotate(a, b, angles[2 * i], angles[2 * i + 1]);
}

// The four values from `value` on, which is less than the dims, of a rotated head.
DEVICE float4 rotated_four(const float* head, const float* angles, int half, bool neighbours, int value) {
    const int i = neighbours ? value / 8 : value % half / 4;
    const FourPairs pairs(head, angles, half, neighbours, i);
    return value == pairs.place ? pairs.first : pairs.second;
}

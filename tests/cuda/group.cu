// The values of rows of blocks by a format's group(), and by its units, as floats.
#include "formats.cuh"

extern "C" __global__ void by_group(const uint8_t* w, float* y, int k, int rows) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, row = i / (k / 32), g = i % (k / 32);
    if (row >= rows) return;
    int q[8];
    float scale[2], offset[2];
    Weights::group(w + row * row_bytes<Weights>(k), g, q, scale, offset);
    for (int v = 0; v < 32; v++) {
        y[32 * i + v] = scale[v / 16] * float(int8_t(q[v / 4] >> (v % 4 * 8))) - offset[v / 16];
    }
}

extern "C" __global__ void by_unit(const uint8_t* w, float* y, int k, int rows) {
    constexpr int PARTS = Weights::PARTS;
    const int i = blockIdx.x * blockDim.x + threadIdx.x, units = k / (16 * PARTS);
    const int row = i / units, u = i % units;
    if (row >= rows) return;
    Unpacked<Weights> unpacked;
    Weights::unpack(Weights::load(w + row * row_bytes<Weights>(k), u), u, unpacked);
    for (int part = 0; part < PARTS; part++) {
        const int s = part * 16 / Weights::PER_SCALE;
        float* const to = y + row * k + 16 * (Weights::chunk(u) + part * Weights::STEP);
        for (int v = 0; v < 16; v++) {
            const int8_t q = unpacked.q[4 * part + v / 4] >> (v % 4 * 8);
            to[v] = unpacked.scale[s] * float(q) - (Weights::OFFSETS ? unpacked.offset[s] : 0.0f);
        }
    }
}

// Keys or values on their way to tensor cores: some rows of a page in shared memory, as 16-bit floats.
#pragma once
#include "attention.cuh"

// KEYS rows, loaded by THREADS. A unit is 16 bytes; units are exchanged within a row so that the same
// unit of 8 neighbouring rows is in different banks. Behind them are the scales: [block][row].
template <class Kind, int WIDTH, int KEYS, int THREADS> struct Stage {
    static constexpr int ROW_UNITS = WIDTH / 8, SCALES = Kind::SCALED ? WIDTH / BLOCK * KEYS : 0;
    static constexpr int UNITS = KEYS * ROW_UNITS + SCALES / 8;
    uint4* units;

    DEVICE static int index(int row, int unit) {
        return row * ROW_UNITS + (unit ^ (ROW_UNITS % 8 == 0 ? row % 8 : row / 2 % 4));
    }
    // A lane's row of a matrix, `lane_row` behind a row that is a multiple of 8 and known when compiling.
    DEVICE const uint4* at(int row, int lane_row, int unit) const {
        return units + index(lane_row, unit) + row * ROW_UNITS;
    }
    DEVICE __half* scales() const { return reinterpret_cast<__half*>(units + KEYS * ROW_UNITS); }
    // Of a block, for an even row and the next one.
    DEVICE float2 two_scales(int block, int row) const {
        return Half::unpack(*reinterpret_cast<const uint32_t*>(scales() + block * KEYS + row));
    }

    // The positions from `first` on; those from `end` on are zeros. Copies are there after cp_async_wait.
    DEVICE void load(const Attention& a, const uint8_t* cells, const int* table, int head, int first,
                     int end) const {
        const Tile<Kind, WIDTH> tile(cells, table[first / PAGE], a.kv_heads, head);
        load_rows(tile, first % PAGE, end - first);
        for (int i = threadIdx.x; i < SCALES; i += THREADS) {
            const int row = i % KEYS;
            __half scale = __float2half_rn(0.0f);
            if (row < end - first) scale = tile.scales(i / KEYS)[first % PAGE + row];
            scales()[i] = scale;
        }
        cp_async_commit();
    }

    DEVICE void load_rows(const Tile<Kind, WIDTH>& tile, int position, int rows) const {
        constexpr int AT_ONCE = THREADS / ROW_UNITS;  // rows, a thread a unit
        const int unit = threadIdx.x % ROW_UNITS, begin = threadIdx.x / ROW_UNITS;
#pragma unroll 2
        for (int row = begin < AT_ONCE ? begin : KEYS; row < KEYS; row += AT_ONCE) {
            uint4* const target = units + index(row, unit);
            if constexpr (Kind::COPIED) {
                cp_async_16(target, &tile.template piece<8>(position + row, 8 * unit), row < rows);
            } else {
                uint4 halves = {};
                if (row < rows) halves = tile.halves(position + row, 8 * unit);
                *target = halves;
            }
        }
    }
};

// Operations of a warp: shuffles, votes, reductions.
#pragma once
#include "thread.h"

#pragma GCC visibility push(default)  // the runtime has them
namespace emu {

// All lanes of `mask` meet; the last to come does the work for all.
void warp_barrier(uint32_t mask, Where where);
void shuffle(uint32_t mask, void* value, size_t bytes, int source, Where where);
uint32_t ballot(uint32_t mask, bool predicate, Where where);
uint32_t match_any(uint32_t mask, uint32_t value, Where where);

enum class Reduce { ADD, MIN, MAX, MIN_SIGNED, MAX_SIGNED, AND, OR, XOR };
uint32_t reduce(uint32_t mask, uint32_t value, Reduce operation, Where where);

template <class T> T shuffled(uint32_t mask, T value, int source, Where where) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles move 4 or 8 bytes");
    shuffle(mask, &value, sizeof value, source, where);
    return value;
}

}  // namespace emu
#pragma GCC visibility pop

inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_WHERE) { emu::warp_barrier(mask, where); }

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_WHERE) {
    const int lane = emu::thread->lane;
    return emu::shuffled(mask, value, (lane & -width) | (source & (width - 1)), where);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_WHERE) {
    const int lane = emu::thread->lane, source = lane ^ bits;
    return emu::shuffled(mask, value, source < (lane & -width) + width ? source : lane, where);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_WHERE) {
    const int lane = emu::thread->lane, source = lane + int(delta);
    return emu::shuffled(mask, value, source < (lane & -width) + width ? source : lane, where);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_WHERE) {
    const int lane = emu::thread->lane, source = lane - int(delta);
    return emu::shuffled(mask, value, source >= (lane & -width) ? source : lane, where);
}

inline unsigned __ballot_sync(unsigned mask, int p, EMU_WHERE) { return emu::ballot(mask, p, where); }
inline int __any_sync(unsigned mask, int p, EMU_WHERE) { return emu::ballot(mask, p, where) != 0; }
inline int __all_sync(unsigned mask, int p, EMU_WHERE) { return emu::ballot(mask, !p, where) == 0; }
inline unsigned __match_any_sync(unsigned mask, unsigned value, EMU_WHERE) {
    return emu::match_any(mask, value, where);
}

#if __CUDA_ARCH__ >= 800
#define EMU_REDUCE(NAME, T, OPERATION)                                               \
    inline T __reduce_##NAME##_sync(unsigned mask, T value, EMU_WHERE) {             \
        return T(emu::reduce(mask, uint32_t(value), emu::Reduce::OPERATION, where)); \
    }
EMU_REDUCE(add, int, ADD)
EMU_REDUCE(add, unsigned, ADD)
EMU_REDUCE(min, int, MIN_SIGNED)
EMU_REDUCE(min, unsigned, MIN)
EMU_REDUCE(max, int, MAX_SIGNED)
EMU_REDUCE(max, unsigned, MAX)
EMU_REDUCE(and, unsigned, AND)
EMU_REDUCE(or, unsigned, OR)
EMU_REDUCE(xor, unsigned, XOR)
#undef EMU_REDUCE
#endif

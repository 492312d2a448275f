// Atomic operations: blocks run on several threads of the host.
#pragma once
#include "types.h"

namespace emu {

// Atomic accesses are in no race.
template <class T, class F> __attribute__((no_sanitize("thread"))) T read_modify_write(T* address, F change) {
    typedef std::conditional_t<sizeof(T) == 8, uint64_t,
                               std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>
        Bits;
    Bits before = __atomic_load_n(reinterpret_cast<Bits*>(address), __ATOMIC_RELAXED), after;
    T old;
    do {
        memcpy(&old, &before, sizeof old);
        const T fresh = change(old);
        memcpy(&after, &fresh, sizeof after);
    } while (!__atomic_compare_exchange_n(reinterpret_cast<Bits*>(address), &before, after, false,
                                          __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return old;
}

}  // namespace emu

#define EMU_ATOMIC(NAME, EXPRESSION)                                                    \
    template <class T> T NAME(T* address, std::common_type_t<T> value) {                \
        return emu::read_modify_write(address, [=](T old) -> T { return EXPRESSION; }); \
    }
EMU_ATOMIC(atomicAdd, old + value)
EMU_ATOMIC(atomicSub, old - value)
EMU_ATOMIC(atomicMax, old > value ? old : value)
EMU_ATOMIC(atomicMin, old < value ? old : value)
EMU_ATOMIC(atomicAnd, old& value)
EMU_ATOMIC(atomicOr, old | value)
EMU_ATOMIC(atomicXor, old ^ value)
EMU_ATOMIC(atomicExch, ((void)old, value))
EMU_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
#undef EMU_ATOMIC

template <class T> T atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
    return emu::read_modify_write(address, [=](T old) -> T { return old == compare ? value : old; });
}

// How the runtime calls a kernel: EMU_EXPORT, which the builder writes for each kernel it finds.
#pragma once
#include "thread.h"

namespace emu {

typedef void (*Entry)(void** arguments);

struct Export {
    Entry entry;
    const char* signature;  // a letter a parameter: P pointer, i int, q long long, f float, ? none of these
    unsigned max_threads;   // of __launch_bounds__; 0: not said
};

template <auto K> struct Caller;
template <class... A, void (*K)(A...)> struct Caller<K> {
    template <size_t... I> static void unpack(void** arguments, std::index_sequence<I...>) {
        (void)arguments;
        K(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
    }
    static void call(void** arguments) { unpack(arguments, std::index_sequence_for<A...>{}); }

    template <class T> static constexpr char letter() {
        if (std::is_pointer_v<T>) return 'P';
        if (std::is_same_v<T, float>) return 'f';
        if (std::is_integral_v<T> && std::is_signed_v<T>)
            return sizeof(T) == 8 ? 'q' : sizeof(T) == 4 ? 'i' : '?';
        return '?';
    }
    static constexpr char signature[] = {letter<std::remove_cv_t<A>>()..., '\0'};
};

constexpr unsigned first(unsigned threads = 0, unsigned = 0, unsigned = 0) { return threads; }

}  // namespace emu

#define EMU_EXPORT(kernel, ...)                                                          \
    extern "C" __attribute__((visibility("default"))) const emu::Export emu_##kernel = { \
        &emu::Caller<&kernel>::call, emu::Caller<&kernel>::signature, emu::first(__VA_ARGS__)};

// What the compiler's checks of undefined behaviour call (-fsanitize=undefined, without its library).
//
// A misaligned load, an index past an array, a shift by too many bits: on a card each is a fault or garbage.
#include <cstdint>
#include <cstdio>

#include "worker.h"

namespace {

struct Location {
    const char* file;
    uint32_t line, column;
};

struct Type {
    uint16_t kind, info;
    char name[];
};

struct TypeMismatch {
    Location location;
    const Type* type;
    unsigned char log_alignment, kind;
};

struct OutOfBounds {
    Location location;
    const Type *array, *index;
};

[[noreturn]] void fail(const Location& location, const char* what) {
    emu::Worker::mine().fail({{location.file, int(location.line)}}, what);
}

}  // namespace

#define EMU_CHECK(NAME) extern "C" __attribute__((noreturn)) void __ubsan_handle_##NAME

EMU_CHECK(type_mismatch_v1_abort)(const TypeMismatch* data, uintptr_t address) {
    char text[200];
    const size_t alignment = size_t(1) << data->log_alignment;
    if (address == 0) snprintf(text, sizeof text, "null pointer to %s", data->type->name);
    else if (address % alignment)
        snprintf(text, sizeof text, "address %#zx of a %s is not aligned to %zu bytes", size_t(address),
                 data->type->name, alignment);
    else snprintf(text, sizeof text, "no room for a %s at %#zx", data->type->name, size_t(address));
    fail(data->location, text);
}

EMU_CHECK(out_of_bounds_abort)(const OutOfBounds* data, uintptr_t index) {
    char text[200];
    snprintf(text, sizeof text, "index %zd is outside of %s", ssize_t(index), data->array->name);
    fail(data->location, text);
}

#define EMU_PLAIN_CHECK(NAME, TEXT) \
    EMU_CHECK(NAME##_abort)(const Location* location, uintptr_t, uintptr_t) { fail(*location, TEXT); }
EMU_PLAIN_CHECK(shift_out_of_bounds, "a shift by too many bits, or of a negative number")
EMU_PLAIN_CHECK(divrem_overflow, "division by zero, or an overflow in a division")
EMU_PLAIN_CHECK(add_overflow, "an int overflows in a sum")
EMU_PLAIN_CHECK(sub_overflow, "an int overflows in a difference")
EMU_PLAIN_CHECK(mul_overflow, "an int overflows in a product")
EMU_PLAIN_CHECK(negate_overflow, "an int overflows in a negation")
EMU_PLAIN_CHECK(load_invalid_value, "a bool or an enum has a value that it cannot have")
EMU_PLAIN_CHECK(pointer_overflow, "an address overflows")
EMU_PLAIN_CHECK(vla_bound_not_positive, "an array's length is not positive")
EMU_PLAIN_CHECK(nonnull_arg, "a null pointer where none may be")

EMU_CHECK(builtin_unreachable)(const Location* location) { fail(*location, "code that cannot be reached"); }
EMU_CHECK(missing_return)(const Location* location) { fail(*location, "a function ends without its result"); }

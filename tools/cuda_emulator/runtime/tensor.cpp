// Tensor cores, ldmatrix and asynchronous copies.
#include "../shim/half.h"
#include "worker.h"

namespace emu {
namespace {

struct Fragments {  // of one lane
    uint32_t a[4], b[2], d[4];
};
static_assert(sizeof(Fragments) <= sizeof Slot::in);

struct Bytes {
    typedef int8_t Raw;
    typedef int Sum;
    typedef int Accumulator;
    static int value(int8_t v) { return v; }
};
struct Halves {  // exact products, and one rounding: the order of a card's sums is not known
    typedef uint16_t Raw;
    typedef double Sum;
    typedef float Accumulator;
    static double value(uint16_t v) { return half_value(v); }
};
struct Bfloats : Halves {
    static double value(uint16_t v) { return bfloat16_value(v); }
};

void need_all(uint32_t lanes, const Warp& warp, const char* what) {
    if (~lanes)
        fail(warp.slots[__builtin_ctz(lanes)].where, "%s needs all 32 lanes, and has %08x", what, lanes);
}

// Where the values of a lane's registers belong: the comment at the head of kernels/cuda/ptx.cuh.
template <class Type, int ROWS, int DEPTH> struct Product {
    static constexpr int E = 4 / sizeof(typename Type::Raw), BANDS = ROWS / 8;  // bands of eight rows
    static constexpr int NA = BANDS * DEPTH / (4 * E), NB = DEPTH / (4 * E), ND = 2 * BANDS;
    typename Type::Sum a[ROWS][DEPTH], b[8][DEPTH];

    static void put(typename Type::Sum* target, uint32_t bits) {
        typename Type::Raw values[E];
        memcpy(values, &bits, sizeof values);
        for (int e = 0; e < E; e++) target[e] = Type::value(values[e]);
    }

    void gather(const Fragments& lane, int group, int t) {
        for (int r = 0; r < NA; r++) put(&a[group + 8 * (r % BANDS)][E * t + 4 * E * (r / BANDS)], lane.a[r]);
        for (int r = 0; r < NB; r++) put(&b[group][E * t + 4 * E * r], lane.b[r]);
    }

    void answer(Slot& slot, int group, int t) const {
        for (int r = 0; r < ND; r++) {
            typename Type::Sum sum = 0;
            const auto *x = a[group + 8 * (r / 2)], *y = b[2 * t + r % 2];
            for (int k = 0; k < DEPTH; k++) sum += x[k] * y[k];
            typename Type::Accumulator d;
            memcpy(&d, &reinterpret_cast<Fragments*>(slot.in)->d[r], sizeof d);
            d = typename Type::Accumulator(sum + d);
            memcpy(slot.out + 4 * r, &d, sizeof d);
        }
    }

    static void run(Warp& warp, uint32_t lanes) {
        need_all(lanes, warp, "mma.sync");
        Product product;
        for (int lane = 0; lane < 32; lane++)
            product.gather(*reinterpret_cast<Fragments*>(warp.slots[lane].in), lane / 4, lane % 4);
        for (int lane = 0; lane < 32; lane++) product.answer(warp.slots[lane], lane / 4, lane % 4);
    }

    static void multiply(void* d, const uint32_t* a, const uint32_t* b, Where where) {
        Slot& slot = static_cast<Fiber*>(thread)->slot();
        Fragments& fragments = *reinterpret_cast<Fragments*>(slot.in);
        memcpy(fragments.a, a, 4 * NA);
        memcpy(fragments.b, b, 4 * NB);
        memcpy(fragments.d, d, 4 * ND);
        Worker::mine().warp_operation(~0u, run, where);
        memcpy(d, slot.out, 4 * ND);
    }
};

}  // namespace

void multiply(Operand type, int rows, int depth, void* d, const uint32_t* a, const uint32_t* b, Where where) {
    if (type == Operand::S8 && rows == 8) return Product<Bytes, 8, 16>::multiply(d, a, b, where);
    if (type == Operand::S8 && depth == 16) return Product<Bytes, 16, 16>::multiply(d, a, b, where);
    if (type == Operand::S8) return Product<Bytes, 16, 32>::multiply(d, a, b, where);
    if (type == Operand::BF16) return Product<Bfloats, 16, 16>::multiply(d, a, b, where);
    if (depth == 8) return Product<Halves, 16, 8>::multiply(d, a, b, where);
    return Product<Halves, 16, 16>::multiply(d, a, b, where);
}

namespace {

template <bool TRANSPOSED> void do_load(Warp& warp, uint32_t lanes) {
    need_all(lanes, warp, "ldmatrix");
    for (int lane = 0; lane < 32; lane++)
        for (int matrix = 0; matrix < warp.slots[lane].source; matrix++)
            for (int e = 0; e < 2; e++) {
                const int along = 2 * (lane % 4) + e, across = lane / 4;
                const int row = TRANSPOSED ? along : across, column = TRANSPOSED ? across : along;
                memcpy(warp.slots[lane].out + 4 * matrix + 2 * e,
                       warp.slots[8 * matrix + row].in + 2 * column, 2);
            }
}

}  // namespace

void load_matrices(uint32_t* registers, int count, bool transposed, const void* row, Where where) {
    Slot& slot = static_cast<Fiber*>(thread)->slot();
    slot.source = count;
    if (static_cast<Fiber*>(thread)->lane < 8u * count) {  // the other lanes' addresses are not used
        Worker::mine().check_shared(row, 16, "ldmatrix", where);
        touch(row, 16, false, __builtin_return_address(0));
        memcpy(slot.in, row, 16);
    }
    Worker::mine().warp_operation(~0u, transposed ? do_load<true> : do_load<false>, where);
    memcpy(registers, slot.out, 4 * count);
}

// What is copied is seen only when it has been waited for, so that a missing wait shows.
void copy_async(void* target, const void* source, int bytes, int source_bytes, Where where) {
    Worker::mine().check_shared(target, bytes, "cp.async", where);
    if (reinterpret_cast<uintptr_t>(source) % bytes)
        fail(where, "cp.async from %p, which is not aligned", source);
    touch(target, bytes, true, __builtin_return_address(0));
    static_cast<Fiber*>(thread)->copies.push_back({target, source, bytes, source_bytes, 0});
}

void commit_copies() {
    for (AsyncCopy& copy : static_cast<Fiber*>(thread)->copies) copy.age++;
}

void wait_for_copies(int groups) {
    std::vector<AsyncCopy>& copies = static_cast<Fiber*>(thread)->copies;
    size_t left = 0;
    for (const AsyncCopy& copy : copies) {
        if (copy.age <= groups) {
            copies[left++] = copy;
            continue;
        }
        touch(copy.target, copy.bytes, true, __builtin_return_address(0));
        memcpy(copy.target, copy.source, copy.source_bytes);
        memset(static_cast<char*>(copy.target) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    }
    copies.resize(left);
}

}  // namespace emu

// The only inline PTX: tensor cores, ldmatrix, asynchronous copies to shared memory, dependent launches.
//
// Functions in namespace ptx are one instruction each; the emulator has its own of the same names. What
// stands below them is made of them, runs on every card from Turing on, and is what kernels call.
//
// Fragments: with g = lane / 4 and t = lane % 4, and E values in a register (4 bytes or 2 halves),
//   A, register r: row g + 8 * (r % 2), values E * t + 4 * E * (r / 2) ... of it
//   B, register r: column g, values E * t + 4 * E * r ... of it
//   D, register r: row g + 8 * (r / 2), column 2 * t + r % 2
#pragma once
#include "common.cuh"

#ifndef __CUDA_EMULATOR__
namespace ptx {

// mma.sync with D = A * B + D, rows of A and columns of B contiguous.
DEVICE void mma_m8n8k16_s8(int (&d)[2], const uint32_t (&a)[1], const uint32_t (&b)[1]) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(d[0]), "+r"(d[1])
                 : "r"(a[0]), "r"(b[0]));
}

DEVICE void mma_m16n8k8_f16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

#if __CUDA_ARCH__ >= 800
DEVICE void mma_m16n8k16_s8(int (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

#define MMA_16(NAME, SHAPE, C, REGISTER)                                                  \
    DEVICE void NAME(C(&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {          \
        asm volatile("mma.sync.aligned." SHAPE                                            \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"   \
                     : REGISTER(d[0]), REGISTER(d[1]), REGISTER(d[2]), REGISTER(d[3])     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
    }
MMA_16(mma_m16n8k32_s8, "m16n8k32.row.col.s32.s8.s8.s32", int, "+r")
MMA_16(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32", float, "+f")
MMA_16(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "+f")
#undef MMA_16
#endif

DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Lane i gives the address of row i % 8 of matrix i / 8: eight rows of 16 bytes, aligned to 16, a matrix.
#define LDMATRIX(NAME, COUNT, TYPE, REGISTERS, ADDRESS, ...)                                          \
    DEVICE void NAME(uint32_t (&r)[COUNT], const void* row) {                                         \
        asm volatile("ldmatrix.sync.aligned.m8n8." TYPE ".shared.b16 {" REGISTERS "}, [" ADDRESS "];" \
                     : __VA_ARGS__                                                                    \
                     : "r"(shared_address(row))                                                       \
                     : "memory");                                                                     \
    }
LDMATRIX(ldmatrix_x1, 1, "x1", "%0", "%1", "=r"(r[0]))
LDMATRIX(ldmatrix_x2, 2, "x2", "%0, %1", "%2", "=r"(r[0]), "=r"(r[1]))
LDMATRIX(ldmatrix_x4, 4, "x4", "%0, %1, %2, %3", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]))
LDMATRIX(ldmatrix_x1_trans, 1, "x1.trans", "%0", "%1", "=r"(r[0]))
LDMATRIX(ldmatrix_x2_trans, 2, "x2.trans", "%0, %1", "%2", "=r"(r[0]), "=r"(r[1]))
LDMATRIX(ldmatrix_x4_trans, 4, "x4.trans", "%0, %1, %2, %3", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
         "=r"(r[3]))
#undef LDMATRIX

DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

#if __CUDA_ARCH__ >= 900
DEVICE void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void griddepcontrol_launch_dependents() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
#endif

#if __CUDA_ARCH__ >= 800
// 16 bytes, of which the last 16 - bytes are zeros and not read.
DEVICE void cp_async_16(void* shared, const void* global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS> DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
#endif

}  // namespace ptx
#endif

using ptx::ldmatrix_x1;
using ptx::ldmatrix_x1_trans;
using ptx::ldmatrix_x2;
using ptx::ldmatrix_x2_trans;
using ptx::ldmatrix_x4;
using ptx::ldmatrix_x4_trans;
using ptx::prefetch_l2;

// What every block of every kernel does before it touches what other kernels write or read. From Hopper on a
// kernel may be launched while the one before it still runs (programmatic dependent launch): it waits here
// for all of it to be done, and lets the one behind it begin. What no kernel writes, weights and the host's
// inputs, may be read before, and anything may be asked for into the cache. A block that left without waiting
// would let the kernel end before the one in front of it. What kernels write must not be read by __ldg or by
// const __restrict__ pointers in kernels that are in graphs: such loads may be moved to before the wait.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    ptx::griddepcontrol_wait();
    ptx::griddepcontrol_launch_dependents();
#endif
}

// D += A * B of 16 x 32 and 32 x 8 bytes.
DEVICE void mma_m16n8k32_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    ptx::mma_m16n8k32_s8(d, a, b);
#else
#pragma unroll
    for (int half = 0; half < 2; half++) {  // of the rows
        int part[2] = {d[2 * half], d[2 * half + 1]};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint32_t a8[1] = {a[2 * k + half]}, b8[1] = {b[k]};
            ptx::mma_m8n8k16_s8(part, a8, b8);
        }
        d[2 * half] = part[0], d[2 * half + 1] = part[1];
    }
#endif
}

// D += A * B of 16 x 16 and 16 x 8 bytes: for formats whose scales change every 16 values.
DEVICE void mma_m16n8k16_s8(int (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
#if __CUDA_ARCH__ >= 800
    ptx::mma_m16n8k16_s8(d, a, b);
#else
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int part[2] = {d[2 * half], d[2 * half + 1]};
        const uint32_t a8[1] = {a[half]};
        ptx::mma_m8n8k16_s8(part, a8, b);
        d[2 * half] = part[0], d[2 * half + 1] = part[1];
    }
#endif
}

// D += A * B of 16 x 16 and 16 x 8 halves.
DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    ptx::mma_m16n8k16_f16(d, a, b);
#else
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const uint32_t a8[2] = {a[2 * k], a[2 * k + 1]}, b8[1] = {b[k]};
        ptx::mma_m16n8k8_f16(d, a8, b8);
    }
#endif
}

#if __CUDA_ARCH__ >= 800  // Turing's tensor cores know no bfloat16
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16_bf16(d, a, b);
}
#endif

// 16 bytes to shared memory, zeros if not valid. Seen after cp_async_wait and a barrier; at once on Turing.
DEVICE void cp_async_16(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    ptx::cp_async_16(shared, global, valid ? 16 : 0);
#else
    *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

DEVICE void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    ptx::cp_async_commit();
#endif
}

// Until all but the newest GROUPS groups that were committed have come.
template <int GROUPS> DEVICE void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    ptx::cp_async_wait<GROUPS>();
#endif
}

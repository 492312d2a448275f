// The instructions of kernels/cuda/ptx.cuh, one function each: tensor cores, ldmatrix, copies, prefetches.
#pragma once
#include "thread.h"

#pragma GCC visibility push(default)  // the runtime has them
namespace emu {

enum class Operand { S8, F16, BF16 };
// Adds A[rows][depth] B[depth][8] to the accumulators, whatever fragments each lane has of the three.
void multiply(Operand type, int rows, int depth, void* d, const uint32_t* a, const uint32_t* b, Where where);
void load_matrices(uint32_t* registers, int count, bool transposed, const void* row, Where where);
void copy_async(void* target, const void* source, int bytes, int source_bytes, Where where);
void commit_copies();
void wait_for_copies(int groups);

}  // namespace emu
#pragma GCC visibility pop

namespace ptx {

#define EMU_MMA(NAME, TYPE, C, ROWS, DEPTH, NC, NA, NB)                                        \
    inline void NAME(C(&d)[NC], const uint32_t (&a)[NA], const uint32_t (&b)[NB], EMU_WHERE) { \
        emu::multiply(emu::Operand::TYPE, ROWS, DEPTH, d, a, b, where);                        \
    }
EMU_MMA(mma_m8n8k16_s8, S8, int, 8, 16, 2, 1, 1)
EMU_MMA(mma_m16n8k8_f16, F16, float, 16, 8, 4, 2, 1)
#if __CUDA_ARCH__ >= 800
EMU_MMA(mma_m16n8k16_s8, S8, int, 16, 16, 4, 2, 1)
EMU_MMA(mma_m16n8k32_s8, S8, int, 16, 32, 4, 4, 2)
EMU_MMA(mma_m16n8k16_f16, F16, float, 16, 16, 4, 4, 2)
EMU_MMA(mma_m16n8k16_bf16, BF16, float, 16, 16, 4, 4, 2)

inline void cp_async_16(void* shared, const void* global, int bytes, EMU_WHERE) {
    emu::copy_async(shared, global, 16, bytes, where);
}
inline void cp_async_commit() { emu::commit_copies(); }
template <int GROUPS> void cp_async_wait() { emu::wait_for_copies(GROUPS); }
#endif
#undef EMU_MMA

#define EMU_LDMATRIX(NAME, COUNT, TRANSPOSED)                            \
    inline void NAME(uint32_t (&r)[COUNT], const void* row, EMU_WHERE) { \
        emu::load_matrices(r, COUNT, TRANSPOSED, row, where);            \
    }
EMU_LDMATRIX(ldmatrix_x1, 1, false)
EMU_LDMATRIX(ldmatrix_x2, 2, false)
EMU_LDMATRIX(ldmatrix_x4, 4, false)
EMU_LDMATRIX(ldmatrix_x1_trans, 1, true)
EMU_LDMATRIX(ldmatrix_x2_trans, 2, true)
EMU_LDMATRIX(ldmatrix_x4_trans, 4, true)
#undef EMU_LDMATRIX

// Reads a byte: what is asked for must be there.
inline void prefetch_l2(const void* p) { (void)*static_cast<const volatile char*>(p); }
inline void griddepcontrol_wait() {}  // kernels come one after the other here
inline void griddepcontrol_launch_dependents() {}

}  // namespace ptx

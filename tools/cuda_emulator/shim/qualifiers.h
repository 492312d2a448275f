// What CUDA adds to declarations. Last of all: the host's headers have other uses for some of these words.
#pragma once

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
// __shared__ is no macro: the builder rewrites declarations of shared memory.

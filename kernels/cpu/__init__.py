"""The CPU's kernels: Numba over a SIMD vocabulary of our own; see docs/architecture.md."""

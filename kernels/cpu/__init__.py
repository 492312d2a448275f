"""The CPU's kernels: Numba over a SIMD vocabulary of our own (simd.py), one file a weight format or
operation."""

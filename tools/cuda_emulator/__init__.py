"""The CUDA kernels of kernels/cuda on the CPU: see docs/emulator.md."""

"""The CUDA kernels: on the emulator, or on a card with --device cuda."""

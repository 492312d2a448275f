"""CUDA devices: cards of NVIDIA, by way of CuPy, or emulated ones."""

"""cuBLAS, as CuPy binds it: CuPy's wheels do not bring the library, so it may be missing."""

from typing import Any

import numpy as np

from ggrun.devices.cuda.driver import Gemm


class Cublas:
    """A handle, for the current card. ImportError or RuntimeError where the library cannot be used."""

    def __init__(self, cupy: Any) -> None:
        self._lib, self._runtime = cupy.cuda.cublas, cupy.cuda.runtime
        self._handle = self._lib.create()
        self.error: type[Exception] = self._lib.CUBLASError

    def gemm(self, product: Gemm) -> None:
        """Enqueue a product on the current stream."""
        lib, p = self._lib, product
        half, single = self._runtime.CUDA_R_16F, self._runtime.CUDA_R_32F
        scale, zero = np.full(1, p.scale, np.float32), np.zeros(1, np.float32)
        # To cuBLAS, what lies behind each other is a column: our rows, so that y^T = w . x^T is asked for.
        lib.gemmEx(
            self._handle, lib.CUBLAS_OP_T, lib.CUBLAS_OP_N, p.rows, p.n, p.k, scale.ctypes.data,
            p.w, half, p.k, p.x, half, p.x_stride, zero.ctypes.data, p.y, single, p.y_stride,
            lib.CUBLAS_COMPUTE_32F, lib.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip

    def close(self) -> None:
        """Give the handle back, and its memory."""
        self._lib.destroy(self._handle)

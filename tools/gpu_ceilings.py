"""What the card can do, by plain means: copies within it, copies to it, a matrix product by cuBLAS. All other
figures are shares of these.
"""

import subprocess
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from tools.gpu_step import COPY, MATRIX, UPLOAD, Figure, Step, spread
from tools.gpu_time import Timer, cupy_module, open_card

_COPIED = 1 << 30  # bytes
_MATRIX, _TILE = 8192, 1 << 22  # rows, and bf16 numbers that are drawn
_PRODUCTS, _STRETCHES = 8, 7
_QUERY = "driver_version,pcie.link.gen.max,pcie.link.width.current,clocks.max.sm,clocks.max.mem,power.limit"


def run(step: Step) -> None:
    """All three."""
    card = open_card(step.emulated)
    step.attempt("card", lambda: step.tell(Figure("card", more=about(card))))
    step.attempt(COPY, partial(_copy, step, card))
    step.attempt(MATRIX, partial(_stand_in if step.emulated else _product, step, card))
    for what, to_card in ((UPLOAD, True), ("download rate", False)):
        step.attempt(what, partial(_bus, step, card, what, to_card))


def about(card: Cuda) -> dict[str, Any]:
    """The card, its driver, CUDA, CuPy."""
    driver, (free, total) = card.driver, card.driver.free_memory()
    facts = {
        "name": driver.name if isinstance(driver, CupyDriver) else "the emulator",
        "compute capability": driver.arch / 10,
        "multiprocessors": driver.multiprocessors,
        "memory, bytes": total,
        "free, bytes": free,
        "L2, bytes": driver.l2_bytes,
    }
    return facts | (_software() if isinstance(driver, CupyDriver) else {})


def _software() -> dict[str, Any]:
    cupy = cupy_module()
    runtime, nvrtc = cupy.cuda.runtime, cupy.cuda.nvrtc
    facts = {
        "CuPy": cupy.__version__,
        "CUDA of the driver": _version(runtime.driverGetVersion()),
        "CUDA runtime": _version(runtime.runtimeGetVersion()),
        "NVRTC": ".".join(map(str, nvrtc.getVersion())),
    }
    try:
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return facts
    return facts | dict(zip(_QUERY.split(","), (part.strip() for part in said.split(",")), strict=False))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _copy(step: Step, card: Cuda) -> None:
    nbytes = _size(step, card)
    rates = [rate / 1e9 for rate in card.copy_rates(nbytes, 2 * _STRETCHES)]
    how = f"cudaMemcpyAsync of {nbytes >> 20} MiB within the card, bytes read and written, CUDA events"
    _tell(step, COPY, rates, "GB/s", how)


def _product(step: Step, card: Cuda) -> None:
    """cublasGemmEx, as CuPy's matmul has no bfloat16; that one, of halves, if it cannot be called."""
    try:
        times, how = _gemm(card), "cublasGemmEx of bf16, sums in float32"
    except Exception as error:  # this part of CuPy is not a public one
        times = _matmul(card)
        how = f"cupy.matmul of float16 (cublasGemmEx of bf16 failed: {' '.join(str(error).split())[:80]})"
    rates = [2 * _MATRIX**3 * _PRODUCTS / seconds / 1e12 for seconds in times]
    how += f", {_MATRIX} x {_MATRIX} x {_MATRIX}, random numbers, CUDA events around {_PRODUCTS}"
    _tell(step, MATRIX, rates, "TFLOP/s", how)


def _normal() -> np.ndarray:
    drawn = np.random.default_rng(1).standard_normal(_TILE).astype(np.float32)
    return np.tile(drawn, _MATRIX * _MATRIX // _TILE).reshape(_MATRIX, _MATRIX)


def _gemm(card: Cuda) -> list[float]:
    from cupy_backends.cuda.libs import cublas

    driver, runtime = card.driver, cupy_module().cuda.runtime
    bits = ((_normal().view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    a, b, c = (card.working_memory(bits.nbytes) for _ in range(3))
    driver.write(a.address, bits)
    driver.write(b.address, np.ascontiguousarray(bits[::-1]))
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    n, kind, plain = _MATRIX, runtime.CUDA_R_16BF, cublas.CUBLAS_OP_N
    how = cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT
    alpha, beta = one.ctypes.data, zero.ctypes.data
    assert isinstance(driver, CupyDriver)
    with driver.on("a matrix product"), driver.stream.raw:
        handle = cublas.create()
        try:

            def product() -> None:
                read = a.address, kind, n, b.address, kind, n
                cublas.gemmEx(handle, plain, plain, n, n, n, alpha, *read, beta, c.address, kind, n, *how)

            return _repeated(card, product)
        finally:
            driver.stream.synchronize()
            cublas.destroy(handle)


def _matmul(card: Cuda) -> list[float]:
    cupy, driver = cupy_module(), card.driver
    assert isinstance(driver, CupyDriver)
    with driver.on("a matrix product"), driver.stream.raw:
        a = cupy.asarray(_normal().astype(np.float16))
        b, c = a.T.copy(), cupy.empty_like(a)
        return _repeated(card, lambda: cupy.matmul(a, b, out=c))


def _repeated(card: Cuda, product: Callable[[], None]) -> list[float]:
    def products() -> None:
        for _ in range(_PRODUCTS):
            product()

    return Timer(card.driver).stretches(products, _STRETCHES)


def _stand_in(step: Step, card: Cuda) -> None:
    a = np.random.default_rng(1).standard_normal((128, 128)).astype(np.float32)
    b = np.empty_like(a)

    def product() -> None:
        np.matmul(a, a, out=b)

    times = Timer(card.driver).stretches(lambda: card.stream.enqueue(product), 2)
    rates = [2 * len(a) ** 3 / seconds / 1e12 for seconds in times]
    _tell(step, MATRIX, rates, "TFLOP/s", "numpy, which stands in for cuBLAS")


def _bus(step: Step, card: Cuda, what: str, to_card: bool) -> None:
    nbytes = _size(step, card)
    there, here = card.working_memory(nbytes), card.driver.allocate_on_host(nbytes)
    source, target = (here, there) if to_card else (there, here)
    driver = card.driver
    times = Timer(driver).stretches(lambda: driver.copy(target.address, source.address, nbytes), _STRETCHES)
    how = f"cudaMemcpyAsync of {nbytes >> 20} MiB of pinned memory, CUDA events"
    _tell(step, what, [nbytes / seconds / 1e9 for seconds in times], "GB/s", how)


def _size(step: Step, card: Cuda) -> int:
    return 1 << 16 if step.emulated else min(_COPIED, card.available() // 4)


def _tell(step: Step, what: str, values: list[float], unit: str, how: str) -> None:
    how = f"stand-in on the emulator for: {how}" if step.emulated else how
    step.tell(Figure(what, median(values), unit, how=how, more=spread(values)))

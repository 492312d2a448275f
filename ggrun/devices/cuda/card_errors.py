"""What CuPy raises, as GgrunErrors: one line that says which card, for what, and what helps."""

from typing import Any

from ggrun.devices.cuda.driver import OutOfMemory
from ggrun.errors import GgrunError

_CARD_IS_FULL = "who else has taken memory of it? -fitt leaves more free, -c and -ub take less"
_HOST_IS_FULL = (
    "the host's memory is short, not the card's: what else runs here, or what limits this container? "
    "With -nkvo, -c takes less of it"
)
_LOST = (
    "the card has lost what it had: start again, and without it (-dev) if that fails too; "
    "ggrun doctor says whether it can still be used"
)

_NO_MEMORY = 2  # cudaErrorMemoryAllocation, and CUDA_ERROR_OUT_OF_MEMORY
_UNUSABLE = frozenset((214, 220, 226, 700, 702, 709, 710, *range(714, 720), 999))
"""Errors of CUDA after which a process gets no other answer, or the card is gone: faults of kernels, of its
memory, of links. All else, as what cannot be in a graph, leaves the card as good as before."""


def cuda_errors(cupy: Any) -> tuple[type[Exception], ...]:
    """What CuPy raises for errors of CUDA."""
    return cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError


class CardErrors:
    """Those of one card; inside `with`, GgrunErrors. Cards may tell what fails in a later call than its own.

    card     what lines call it
    kinds    the classes that CuPy raises
    """

    def __init__(self, cupy: Any, card: str) -> None:
        self._cupy, self._card = cupy, card
        cuda = cupy.cuda
        self.kinds = (*cuda_errors(cupy), cuda.compiler.CompileException, cuda.memory.OutOfMemoryError)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self.kinds):
            raise self.told(error) from None

    def told(self, error: Exception, what: str = "", full: str = _CARD_IS_FULL) -> GgrunError:
        """What users are told of an error. what: was to be done; full: what helps where memory is short."""
        line = ": ".join(filter(None, (self._card, what, first_line(error))))
        status = getattr(error, "status", None)
        if status == _NO_MEMORY or isinstance(error, self._cupy.cuda.memory.OutOfMemoryError):
            return OutOfMemory(f"{line}: {full}")
        return GgrunError(f"{line}: {_LOST}" if status in _UNUSABLE else line)

    def pinned(self, nbytes: int) -> Any:
        """Memory of the host, CuPy's, that cards reach by its address; OutOfMemory where none can be had."""
        try:
            return self._cupy.cuda.alloc_pinned_memory(max(nbytes, 1))
        except self.kinds as error:
            raise self.told(error, f"{nbytes} bytes of pinned memory", _HOST_IS_FULL) from None


def first_line(error: BaseException) -> str:
    """Of what an error says; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

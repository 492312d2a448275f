"""Weight formats as macros of the CUDA kernels: IQ1, IQ2 and IQ3 formats bring their code books along."""

from functools import cache

import numpy as np
from gguf import quants


def format_defines(name: str) -> dict[str, str | int]:
    """What kernels that read weights of a format are compiled with."""
    if name.startswith(("IQ1", "IQ2", "IQ3")):
        return {"FORMAT": name, "CODE_BOOK": _code_book("IQ1_S" if name == "IQ1_M" else name)}
    return {"FORMAT": name}


@cache
def _code_book(name: str) -> str:
    """A format's code book, as gguf has it: entries of 4 or 8 signed bytes, as words in C."""
    book = getattr(quants, name)
    book.init_grid()
    entries = book.grid.reshape(book.grid_shape).astype(np.int8)
    return ",".join(hex(word) for word in np.ascontiguousarray(entries).view(np.uint32).ravel().tolist())

"""Write a GGUF of a well-known shape with random weights: python tools/make_model.py SHAPE MIX OUT.gguf.

For benchmarks and for tests of memory and speed. MIX is one of llama.cpp's (Q4_K_M, IQ4_XS, F16...) or
pure:FORMAT, which gives every matrix that format. The weights are valid blocks of random bits, streamed to
disk, so that a file may be far larger than the memory.
"""

import argparse
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
from model_blocks import Weights
from model_shapes import SIZES, metadata, resized, rope_factors
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.gguf.types import Format, tensor_nbytes
from ggrun.gguf.writer import Source, write_gguf
from ggrun.plan.mixes import MIXES, PURE, Mix, find_mix
from ggrun.plan.shapes import SHAPES, Shape, Slot, slots

CHUNK = 1 << 20  # weights that are made at once: a multiple of every format's block
NOISE = 0.1  # of biases


def write_model(
    path: Path,
    shape: Shape,
    mix: str,
    *,
    seed: int = 0,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
    tell: Callable[[int], None] = lambda n: None,
) -> list[Path]:
    """Write the file, or its shards, and return their paths; `tell` hears of every piece how large it is.

    ValueError for a mix that there is not; GGUFError where the disk does not take it.
    """
    chosen = find_mix(mix)
    tensors = [_source(slot, chosen.format(slot, shape), shape, seed, tell) for slot in slots(shape)]
    values = metadata(shape, mix, chosen.file_type)
    return write_gguf(path, values, tensors, max_tensors=max_tensors, max_bytes=max_bytes)


def _source(slot: Slot, format: Format, shape: Shape, seed: int, tell: Callable[[int], None]) -> Source:
    if slot.role == "ones":
        return Source(slot.name, slot.shape, format, np.ones(slot.shape, np.float32))
    if slot.role == "rope":
        return Source(slot.name, slot.shape, format, rope_factors(shape))
    return Source(slot.name, slot.shape, format, partial(_pieces, slot, format, seed, tell))


def _pieces(slot: Slot, format: Format, seed: int, tell: Callable[[int], None]) -> Iterator[NDArray[Any]]:
    # A product with a vector of size 1 then is of size 1 too.
    std = slot.shape[0] ** -0.5 if len(slot.shape) > 1 else NOISE
    weights = Weights(format, std, (seed, zlib.crc32(slot.name.encode())))
    left = int(np.prod(slot.shape, dtype=np.int64))
    while left:
        piece = weights.draw(min(left, CHUNK))
        yield piece
        tell(piece.nbytes)
        left -= min(left, CHUNK)


class Progress:
    """How far a long piece of work is, on one line of a terminal; nothing elsewhere."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream = total, stream if stream.isatty() else None
        self._done, self._start, self._shown = 0, time.monotonic(), 0.0

    def add(self, n: int) -> None:
        """So many more bytes are done."""
        self._done += n
        now = time.monotonic()
        if self._stream and now - self._shown > 0.2:
            self._shown = now
            self._stream.write(f"\r{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {self.rate()}\x1b[K")
            self._stream.flush()

    def rate(self) -> str:
        """Bytes a second so far."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{self._done / seconds / 1e6:.0f} MB/s"

    def clear(self) -> None:
        """Leave an empty line."""
        if self._stream and self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"make_model: {message}\n")


def _size(text: str) -> int:
    if not (found := re.fullmatch(r"([1-9]\d*)([MG])", text)):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a size such as 500M or 2G")
    return int(found[1]) * 10 ** (6 if found[2] == "M" else 9)


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a whole number of 1 or more")
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a whole number of 0 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    epilog = f"Shapes: {', '.join(SHAPES)}. Mixes: {', '.join(MIXES)}; pure:FORMAT with {', '.join(PURE)}."
    parser = _Parser("make_model", description=str(__doc__).partition("\n")[0], epilog=epilog)
    parser.add_argument("shape", metavar="SHAPE", help="the shape's name")
    parser.add_argument("mix", metavar="MIX", help="llama.cpp's name of a mix, or pure:FORMAT")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument("-s", "--seed", metavar="N", type=_seed, default=0, help="of the weights [0]")
    parser.add_argument("--split-max-tensors", metavar="N", type=_positive, help="write shards of N tensors")
    parser.add_argument("--split-max-size", metavar="N(M|G)", type=_size, help="write shards of this size")
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", type=_positive, help="another size")
    return parser


def _asked(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Shape, Mix]:
    asked = parser.parse_args()
    if asked.shape not in SHAPES:
        parser.error(f"unknown shape {asked.shape[:40]!r}; there are {', '.join(SHAPES)}")
    sizes = {name: value for name in SIZES if (value := getattr(asked, name)) is not None}
    try:
        return asked, resized(SHAPES[asked.shape], **sizes), find_mix(asked.mix)
    except ValueError as error:
        parser.error(str(error))


def main() -> None:
    """Write a model as the command line says."""
    asked, shape, mix = _asked(_parser())
    formats = {slot: mix.format(slot, shape) for slot in slots(shape)}
    size = sum(tensor_nbytes(slot.shape, format) for slot, format in formats.items())
    progress = Progress(size, sys.stderr)
    limits = {"max_tensors": asked.split_max_tensors, "max_bytes": asked.split_max_size}
    try:
        paths = write_model(asked.out, shape, asked.mix, seed=asked.seed, tell=progress.add, **limits)
    except GgrunError as error:
        progress.clear()
        sys.exit(f"make_model: {error}")
    except KeyboardInterrupt:
        progress.clear()
        sys.exit(130)
    progress.clear()
    kinds = ", ".join(f"{n} {name}" for name, n in Counter(f.name for f in formats.values()).most_common())
    print(f"{paths[0]}: {size / 1e9:.3g} GB at {progress.rate()}; {len(formats)} tensors: {kinds}")


if __name__ == "__main__":
    main()

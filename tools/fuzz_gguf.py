"""Fuzz the GGUF reader with atheris: python tools/fuzz_gguf.py [corpus folder] [libFuzzer options].

Not part of CI: atheris is not available for every Python. A finding is anything but success or a GGUFError of
one line. Needs only numpy besides atheris.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("fuzz_gguf: atheris is not installed, or not available for this Python: pip install atheris")

with atheris.instrument_imports(include=["ggrun.gguf"]):
    from ggrun.gguf import FORMATS, GGUF, GGUFError, Source, write_gguf

SEED = {
    "general.architecture": "llama",
    "general.alignment": 32,
    "llama.rope.freq_base": 10000.0,
    "llama.causal": True,
    "tokenizer.ggml.tokens": ["<s>", "▁a", ""],
    "tokenizer.ggml.scores": [0.5, -1.0],
}


def seeds(folder: Path) -> None:
    """Write a few small sound files for the fuzzer to start from."""
    tensors = [Source("a", (32, 2), FORMATS["Q4_0"], bytes(36)), Source("b", (4,), FORMATS["F32"], bytes(16))]
    write_gguf(folder / "empty.gguf", {})
    write_gguf(folder / "metadata.gguf", SEED)
    write_gguf(folder / "tensors.gguf", {"k": 1}, tensors)
    write_gguf(folder / "model.gguf", SEED, tensors)


def target(path: Path) -> Callable[[bytes], None]:
    """Return the function that opens the fuzzer's bytes as a file at `path`."""

    def open_bytes(data: bytes) -> None:
        path.write_bytes(data)
        try:
            tensors = GGUF(path).tensors
        except GGUFError as error:
            if not str(error).isprintable():
                raise AssertionError("a message that is not one printable line") from error
        else:
            for tensor in tensors.values():
                tensor.data[:1].tobytes(), tensor.data[-1:].tobytes()

    return open_bytes


def main() -> None:
    """Fuzz until a finding, or until a libFuzzer option such as -max_total_time=60 ends it."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        seeds(corpus)
        # libFuzzer reads every folder that it is given and keeps what it finds in the first.
        arguments = [sys.argv[0], *sys.argv[1:], str(corpus)]
        atheris.Setup(arguments, target(Path(folder) / "damaged.gguf"))
        atheris.Fuzz()


if __name__ == "__main__":
    main()

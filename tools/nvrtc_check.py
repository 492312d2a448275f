"""Compiles kernels/cuda for every architecture with NVRTC alone: no GPU, no driver, no CuPy.

    python -m tools.nvrtc_check [--arch 75 --arch 90 ...] [matvec.cu ...]

One line a kernel says its registers, stack, spills and shared memory. Exit status 1 if anything does not
compile, spills, or has a stack frame that its file does not ask for (see cuda_variants.py). Needs the wheels
nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12 (for cuda_fp16.h).
"""

import argparse
import ctypes as c
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from hashlib import sha256
from multiprocessing import get_context
from os import sched_getaffinity
from pathlib import Path

from ggrun.kernels import CUDA_OPTIONS, cache_home, cuda_source
from tools.cuda_variants import Defines, may_have_stack, variants

ARCHS = (75, 86, 89, 90, 120)
_INCLUDE = re.compile(r"^\s*#\s*include\s+(\S+)", re.MULTILINE)
_USE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers[^\n]*?(?:(?P<shared>\d+) bytes smem|\n)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Use:
    """What a kernel takes: registers and bytes of stack a thread, bytes spilled, bytes of shared memory."""

    name: str
    registers: int
    stack: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class Job:
    """A file to compile."""

    path: Path
    arch: int
    defines: Defines

    def __str__(self) -> str:
        macros = "".join(f" {name}={value:.20}" for name, value in self.defines.items())
        return f"{self.path.name}{macros} sm_{self.arch}"


class CompileError(Exception):
    """NVRTC's complaint."""


class Nvrtc:
    """The library of the wheel; ImportError where there is none."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("nvidia")
        folders = [Path(p) for p in (found.submodule_search_locations or ())] if found else []
        libraries = [p for folder in folders for p in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
        self.headers = [p.parent for folder in folders for p in sorted(folder.glob("*/include/cuda_fp16.h"))]
        if not libraries or not self.headers:
            raise ImportError("NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12")
        self._library = c.CDLL(str(libraries[0]))
        self._library.nvrtcGetErrorString.restype = c.c_char_p

    @cached_property
    def version(self) -> tuple[int, int]:
        major, minor = c.c_int(), c.c_int()
        self._library.nvrtcVersion(c.byref(major), c.byref(minor))
        return major.value, minor.value

    def compile(self, job: Job) -> list[Use]:
        """The kernels of a file, by name; CompileError."""
        program = c.c_void_p()
        source, name = job.path.read_bytes(), job.path.name.encode()
        self._library.nvrtcCreateProgram(c.byref(program), source, name, 0, None, None)
        try:
            options = [
                *CUDA_OPTIONS,
                "-ftz=true",  # as CuPy has it
                f"-arch=sm_{job.arch}",
                "--ptxas-options=-v",
                *(f"-D{name}={value.replace('*', '0')}" for name, value in job.defines.items()),
                *(f"-I{folder}" for folder in (job.path.parent, cuda_source("."), *self.headers)),
            ]
            values = (c.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._library.nvrtcCompileProgram(program, len(options), values)
            size = c.c_size_t()
            self._library.nvrtcGetProgramLogSize(program, c.byref(size))
            log = c.create_string_buffer(size.value)
            self._library.nvrtcGetProgramLog(program, log)
        finally:
            self._library.nvrtcDestroyProgram(c.byref(program))
        text = log.value.decode()
        if status or "ptxas warning" in text:
            raise CompileError(f"{job} does not compile:\n{text}")
        return sorted(_uses(text), key=lambda use: use.name)


@cache
def nvrtc() -> Nvrtc:
    """One is enough."""
    return Nvrtc()


def check(job: Job) -> tuple[list[Use], list[str]]:
    """The kernels of a file, and a line on everything that is wrong with them."""
    try:
        uses = _remembered(job)
    except CompileError as error:
        return [], [str(error)]
    allowed = may_have_stack(job.path)
    wrong = [
        f"{job}: {use.name} has a stack frame of {use.stack} bytes, and spills {use.spilled}"
        for use in uses
        if use.spilled or (use.stack and use.name not in allowed)
    ]
    return uses, wrong if uses else [f"{job}: there is no kernel"]


def check_all(jobs: list[Job]) -> Iterator[tuple[Job, list[Use], list[str]]]:
    """Check, several at a time: a process each, because NVRTC compiles one program at a time."""
    with ProcessPoolExecutor(len(sched_getaffinity(0)), get_context("spawn")) as pool:
        for job, (uses, wrong) in zip(jobs, pool.map(check, jobs), strict=True):
            yield job, uses, wrong


def jobs_of(path: Path, archs: tuple[int, ...] = ARCHS) -> list[Job]:
    """All that a file is compiled as."""
    return [Job(path, arch, defines) for defines in variants(path) for arch in archs]


def sources() -> list[Path]:
    """The .cu files of kernels/cuda."""
    return sorted(cuda_source("").glob("*.cu"))


def _uses(log: str) -> Iterator[Use]:
    for found in _USE.finditer(log):
        number = {key: int(value or 0) for key, value in found.groupdict().items() if key != "name"}
        spilled = number["stores"] + number["loads"]
        yield Use(found["name"], number["registers"], number["stack"], spilled, number["shared"])


def _remembered(job: Job) -> list[Use]:
    """As NVRTC says, or said of the same text before."""
    text = "".join(f"{name}\n{text}" for name, text in sorted(_texts(job.path).items()))
    key = sha256(repr((nvrtc().version, CUDA_OPTIONS, job.arch, job.defines, job.path.name, text)).encode())
    folder = cache_home() / "nvrtc"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{key.hexdigest()[:32]}.json"
    if not kept.exists():
        found = [asdict(use) for use in nvrtc().compile(job)]
        scratch = kept.with_suffix(f".{id(job)}")
        scratch.write_text(json.dumps(found))
        scratch.replace(kept)
    return [Use(**use) for use in json.loads(kept.read_text())]


def _texts(path: Path) -> dict[str, str]:
    """The text of a file and of all of ours that it includes, by name."""
    texts, left = {}, [path]
    while left:
        file = left.pop()
        texts[str(file)] = file.read_text()
        for name in _INCLUDE.findall(texts[str(file)]):
            if name.startswith("<"):
                continue
            if not name.startswith('"'):
                raise CompileError(f"{file.name} includes {name}: only plain names can be followed")
            places = (folder / name.strip('"') for folder in (file.parent, cuda_source(".")))
            left += [place for place in places if place.exists() and str(place) not in texts][:1]
    return texts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="of kernels/cuda; all of them if none is named")
    parser.add_argument("--arch", type=int, action="append", help="one or several; all if none is named")
    options = parser.parse_args()
    paths = [cuda_source(file) for file in options.files] or sources()
    problems = []
    for job, uses, wrong in check_all([j for p in paths for j in jobs_of(p, tuple(options.arch or ARCHS))]):
        for use in uses:
            print(
                f"{job!s:60} {use.name:32} {use.registers:3} registers, {use.stack:4} bytes of stack, "
                f"{use.spilled:4} spilled, {use.shared:6} shared"
            )
        problems += wrong
    print("\n".join(problems), file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

"""Compiles the emulator's runtime, and kernels against it, with g++; results are kept by their content."""

import os
import re
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

from ggrun.kernels import cache_home, cuda_source
from tools.cuda_emulator.source import to_cpp

HERE = Path(__file__).parent
SANITIZE = "GGRUN_EMULATOR_SANITIZE"
"""The environment variable that asks for AddressSanitizer. libasan has to be preloaded: see sanitize.py."""

_COMMON = ["-std=c++17", "-fPIC", "-pthread", "-g1"]
_RUNTIME = [*_COMMON, "-O2", "-march=native", "-fno-strict-aliasing", "-D__CUDA_ARCH__=800"]
_KERNEL = [
    *_COMMON,
    *("-Og", "-march=native", "-fvisibility=hidden"),
    # As NVRTC: multiply-adds are made where they can be, and memory may be looked at as any type.
    *("-ffp-contract=fast", "-fno-strict-aliasing"),
    # A frame that is larger than the guard page must not step over it.
    "-fstack-clash-protection",
    # A variable that has no value must not look as if it were zero.
    "-ftrivial-auto-var-init=pattern",
    "-Werror=uninitialized",
]
_CHECKED = [
    *("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),  # see runtime/races.cpp
    # Undefined behaviour ends the launch; runtime/undefined.cpp has what the checks call. An address that
    # overflows is out of reach where it is used, and to check for it takes the compiler a sixth of its time.
    "-fsanitize=undefined",
    "-fno-sanitize=null,vptr,return,float-cast-overflow,pointer-overflow",
    "-fno-sanitize-recover=all",
]
"""What kernels are compiled with that do not have AddressSanitizer."""


class BuildError(Exception):
    """The compiler's complaint."""


def compiler() -> str:
    """CXX, or g++."""
    return os.environ.get("CXX", "g++")


def build_kernels(path: Path, arch: int, defines: dict[str, str]) -> Path:
    """The library of a .cu file; arch as in __CUDA_ARCH__."""
    macros = [f"-D__CUDA_ARCH__={arch}", *(f"-D{name}={value}" for name, value in sorted(defines.items()))]
    text = to_cpp(_preprocess(path, macros))
    runtime = build_runtime()
    # Calls are the same checks as code in place, and half the work for the compiler.
    in_calls = "--param=asan-instrumentation-with-call-threshold=0"
    checks = [*_address(), in_calls] if _address() else _CHECKED
    flags = [*_KERNEL, *checks, *macros, f"-I{HERE / 'shim'}"]
    source = f'#include "cuda_emulator.h"\n{text}'
    name = f"{path.stem}-{_key(source, _shim(), _processor(), runtime.name, flags)}"
    return _keep(name, flags, source, [runtime, f"-Wl,-rpath,{runtime.parent}"])


@cache
def build_runtime() -> Path:
    """The library with fibers, barriers and memory."""
    sources = sorted((HERE / "runtime").glob("*.cpp"))
    text = "".join(p.read_text() for p in sorted((HERE / "runtime").iterdir()))
    flags = [*_RUNTIME, *_address()]
    source = "".join(f'#include "{path}"\n' for path in sources)
    return _keep(f"runtime-{_key(text, _shim(), _processor(), flags)}", flags, source, [])


@cache
def cache_folder() -> Path:
    """Where libraries are kept."""
    folder = cache_home() / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _preprocess(path: Path, macros: list[str]) -> str:
    """The file and all that it includes of ours, without the shim."""
    command = [compiler(), "-E", "-x", "c++", "-std=c++17", "-D__CUDA_EMULATOR__", *macros]
    return _run(
        [*command, f"-I{path.parent}", f"-I{cuda_source('.')}", f"-I{HERE / 'shim' / 'include'}", path]
    )


def _keep(name: str, flags: list[str], source: str, libraries: list[Path | str]) -> Path:
    """Compile and link, unless it has been; others may do the same at the same time.

    The linker is not told of the sanitizers: runtime/ has what their checks call.
    """
    result = cache_folder() / f"{name}.so"
    if not result.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            text, machine, library = (Path(scratch, f"{name}.{end}") for end in ("cpp", "o", "so"))
            text.write_text(source)
            _run([compiler(), *flags, "-c", "-o", machine, text])
            _run([compiler(), "-shared", "-pthread", *_address(), "-o", library, machine, *libraries])
            library.rename(result)
    return result


def _run(command: list[Path | str]) -> str:
    # AddressSanitizer is for us alone: the compiler has memory of its own, and would be twice as slow.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise BuildError(f"{command[0]} cannot compile this:\n{done.stderr[:4000]}")
    return done.stdout


def _address() -> list[str]:
    return ["-fsanitize=address"] if os.environ.get(SANITIZE) else []


@cache
def _shim() -> str:
    return "".join(p.read_text() for p in sorted((HERE / "shim").glob("*.h")))


@cache
def _processor() -> str:
    """What -march=native depends on: the cache may be shared by machines."""
    found = re.search(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return (found[0] if found else "") + _run([compiler(), "--version"])


def _key(*parts: str | list[str]) -> str:
    return sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:16]

"""Starts: Ctrl+C while they last, the cache of compiled kernels, GGRUN_SIMD, sessions that go on."""

import os
import pty
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ggrun.kernels import cache_home, load_cpu
from tests.cli.test_run import GGRUN, complaint, ggrun, listen_to_ctrl_c, read_until
from tests.waiting import PATIENCE

INTERRUPTED = """
import signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
import ggrun.cli
ggrun.cli.main()
"""
# One kernel, and what the runtime compiles for itself.
COMPILE = """
from ggrun.kernels import load_cpu, watch
compiled = []
with watch(compiled.append):
    load_cpu("elementwise").add.address
print(*compiled)
"""


def python(script: str, *args: str, env: dict[str, str] | None = None, **how: Any) -> Any:
    return subprocess.run(
        [sys.executable, "-c", script, *args], env={**os.environ, **(env or {})}, capture_output=True,
        text=True, check=False, **how,
    )  # fmt: skip


@pytest.mark.parametrize("module", ["click", "ggrun.cli.options", "numpy", "numba", "llvmlite"])
def test_ctrl_c_during_imports(module: str) -> None:
    script = INTERRUPTED.format(module=module)
    done = python(script, "run", "-p", "x", "-n", "1", preexec_fn=listen_to_ctrl_c)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_kernels_compile(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        listen_to_ctrl_c()
        os.execve(GGRUN[0], [*GGRUN, "run", "-p", "x"], {**os.environ, "GGRUN_CACHE": str(tmp_path)})
    try:
        read_until(terminal, "first start only: 1")
        os.write(terminal, b"\x03")
        rest = read_until(terminal, "nothing more comes")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    finally:
        os.close(terminal)
    # The line of progress is gone, and nothing has come after it.
    assert rest.endswith("\r" + " " * 85 + "\r")
    assert "Traceback" not in rest


def test_ctrl_c_stays_ignored_in_the_background() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    done = python(INTERRUPTED.format(module="numpy"), "run", "-p", "x", "-n", "1", preexec_fn=ignore)
    assert done.returncode == 0, done.stderr


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def overwrite(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which COMPILE finds its kernels."""
    folder = tmp_path_factory.mktemp("cache")
    assert python(COMPILE, env={"GGRUN_CACHE": str(folder)}).stdout == "elementwise.add\n"
    assert python(COMPILE, env={"GGRUN_CACHE": str(folder)}).stdout == "\n"
    return folder


@pytest.mark.parametrize("damage", [cut_in_half, empty, overwrite])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_cache_is_made_anew(cache: Path, ending: str, damage: Callable[[Path], None]) -> None:
    files = sorted(cache.rglob(f"*.{ending}"))
    assert len(files) > 1
    for file in files:
        damage(file)
    for compiled in ("elementwise.add\n", "\n"):
        done = python(COMPILE, env={"GGRUN_CACHE": str(cache)})
        assert (done.returncode, done.stdout, done.stderr) == (0, compiled, "")


def test_a_disk_that_gets_full_gets_one_note(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = python(COMPILE, env={"GGRUN_CACHE": str(tmp_path)}, preexec_fn=small_files)
    assert (done.returncode, done.stdout) == (0, "elementwise.add\n")
    assert len(done.stderr.splitlines()) == 1
    for words in ("cannot write to the cache folder", str(tmp_path), "too large"):
        assert words in done.stderr


def test_no_cache_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    there = {"GGRUN_CACHE": str(tmp_path / "file" / "x"), "TMPDIR": str(tmp_path / "tmp")}
    done = python(COMPILE, env=there)
    assert (done.returncode, done.stdout) == (0, "elementwise.add\n")
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_that_gets_unusable_gets_one_note(tmp_path: Path) -> None:
    spoil = "load_cpu('runtime')\nimport shutil, sys\nshutil.rmtree(sys.argv[1]); open(sys.argv[1], 'w')\n"
    script = COMPILE.replace("with watch", spoil + "with watch")
    done = python(script, str(tmp_path / "kernels"), env={"GGRUN_CACHE": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "elementwise.add\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "cannot write to the cache folder" in done.stderr


# A host program with a cached function of its own, which changes how Numba is set after ggrun's import.
HOST = """
import os, sys
import numba
from ggrun.kernels import load_cpu, watch
compiled = []
load_cpu("runtime")
os.environ.update(NUMBA_DEBUG_CACHE="0", NUMBA_CACHE_LOCATOR_CLASSES="InTreeCacheLocator", **{{{more}}})
@numba.njit(cache=True)
def own(x):
    return x + 1
own(1)
with watch(compiled.append):
    load_cpu("elementwise").add.address
print(*compiled)
"""


@pytest.mark.parametrize("more", ["", "'NUMBA_CACHE_DIR': 'elsewhere'"])
def test_the_cache_is_apart_from_the_host_programs(tmp_path: Path, more: str) -> None:
    (tmp_path / "host.py").write_text(HOST.format(more=more))
    for compiled in ("elementwise.add\n", "\n"):
        done = subprocess.run(
            [sys.executable, "host.py"], env={**os.environ, "GGRUN_CACHE": str(tmp_path / "cache")},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, compiled, "")
    entries = {file.name.partition("-")[0]: file for file in tmp_path.rglob("*.nbi")}
    assert entries.pop("host.own").parent == tmp_path / "__pycache__"
    assert len(entries) > 3
    assert all((tmp_path / "cache" / "kernels") in file.parents for file in entries.values())


def test_no_home_gets_one_note(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("GGRUN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match="no home folder"):
        cache_home()
    script = "from pathlib import Path\ndef home(): raise RuntimeError\nPath.home = home\n" + COMPILE
    done = python(script, env={"GGRUN_CACHE": "", "XDG_CACHE_HOME": ""})
    assert (done.returncode, done.stdout) == (0, "elementwise.add\n")
    assert len(done.stderr.splitlines()) == 1
    assert "GGRUN_CACHE" in done.stderr


def test_instructions_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    line = complaint(ggrun("run", "-p", "x", GGRUN_SIMD="nonsense"), 2)
    assert "GGRUN_SIMD=nonsense" in line
    assert "avx512, avx2, portable" in line
    llvm_ir = load_cpu("llvm_ir")
    monkeypatch.setattr(
        llvm_ir.llvm, "get_host_cpu_features", lambda: {"avx2": True, "fma": True, "f16c": True}
    )
    monkeypatch.delenv("GGRUN_SIMD", raising=False)
    assert llvm_ir._choose_isa() == "avx2"
    monkeypatch.setenv("GGRUN_SIMD", "portable")
    assert llvm_ir._choose_isa() == "portable"
    monkeypatch.setenv("GGRUN_SIMD", "avx512")
    with pytest.raises(ValueError, match="this CPU has no avx512bw, avx512f, avx512vl, avx512vnni"):
        llvm_ir._choose_isa()


class Screen:
    """What a terminal shows, read up to one text after the other."""

    def __init__(self, terminal: int) -> None:
        self.terminal, self.unread = terminal, ""

    def wait_for(self, text: str) -> str:
        """Read on until it comes; what came before it."""
        while text not in self.unread:
            assert select.select([self.terminal], [], [], PATIENCE)[0], self.unread
            self.unread += os.read(self.terminal, 4096).decode(errors="replace")
        before, _, self.unread = self.unread.partition(text)
        return before


def test_a_prompt_that_is_too_long_does_not_end_the_session() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(GGRUN[0], [*GGRUN, "run", "--no-show-timings", "-n", "3", "-c", "16"])
    try:
        screen = Screen(terminal)
        screen.wait_for("> ")
        os.write(terminal, b"word " * 60 + b"\n")
        screen.wait_for("\nggrun: ")
        screen.wait_for("\n> ")
        os.write(terminal, b"Once\n")
        screen.wait_for("\nOnce")
        screen.wait_for("\n> ")
        os.write(terminal, b"\x04")
        read_until(terminal, "nothing more comes")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)

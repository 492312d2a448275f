"""How kernels are compiled, called and walked: every kernel is a C function of integers, a program is a
table.

A *kernel* takes 64-bit integers (addresses and counts) and returns nothing, so that any kernel can be called
through its address. An *operation* is a kernel (args, thread, threads): `args` is the address of a Struct;
the operation finds its own share of the work. `walk` runs a table of operations; all threads walk the same
table and meet at a barrier where the table asks for one. Python is entered once a program and thread, not
once an operation.
"""

import sys
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, typeof, types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

from .disk import is_on_disk, use_disk
from .kinds import STATIC, Codegen, intrinsic, static
from .llvm_ir import I32, I64, ISA, Value, call, const, pointer

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
# Python never calls a helper: without wrappers for that, a seventh of the time to compile is saved.
_HELPER: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def jit(function: Callable[..., Any]) -> Any:
    """A helper that kernels call. Not cached: the machine code of a kernel holds its helpers'.

    The linker knows helpers by their names, also in machine code that other processes left in the cache. So a
    helper from a factory is named by what it closes over: the same name must mean the same code.
    """
    _name_by_closure(function)
    return njit(**_HELPER)(function)


def _name_by_closure(function: Callable[..., Any]) -> None:
    if function.__closure__:
        inside = " ".join(_identity(cell.cell_contents) for cell in function.__closure__)
        function.__qualname__ += f"<{sha256(inside.encode()).hexdigest()[:16]}>"


def _identity(value: Any) -> str:
    """A name for what a helper closes over, that is the same in every process."""
    if isinstance(value, int | float | str | bool):
        return repr(value)
    if isinstance(value, Dispatcher):
        return f"{value.py_func.__module__}.{value.py_func.__qualname__}"
    if isinstance(value, tuple(STATIC)):
        return str(typeof(value).name)
    # An intrinsic from a factory may be another one in another process, unless the factory names it.
    if isinstance(value, _Intrinsic) and "<locals>" not in value._defn.__qualname__:
        return f"{value._defn.__module__}.{value._defn.__qualname__}"
    raise TypeError(
        f"a helper must not close over {value!r}: what it is called in other processes is unknown"
    )


def _entry(function: Callable[..., Any]) -> Any:
    """A function of integers that Python calls; compiled at import, or found in the cache."""
    entry = njit(**_OPTIONS)(function)
    use_disk(entry, function)
    entry.compile(types.intp(*[types.intp] * function.__code__.co_argcount))
    entry.disable_compile()
    return entry


class Kernel:
    """A function of integers that compiles when its address is first asked for.

    A helper may be made a kernel, also one from a factory: the disk cache knows it by its name (see `jit`).
    """

    on_compile: ClassVar[Callable[[str], None]] = staticmethod(lambda name: None)
    """Told the name of each kernel that was compiled because it was not in the cache."""

    def __init__(self, function: Callable[..., None]) -> None:
        if isinstance(function, Dispatcher):
            function = function.py_func  # a helper, which has its name
        else:
            _name_by_closure(function)
        self.function = function
        # The module that makes it a kernel, which is not always where the function is from.
        self.module = sys._getframe(1).f_globals["__name__"].partition(".cpu.")[2]
        self.name = f"{self.module.rpartition('.')[2]}.{function.__name__.lstrip('_')}"
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """The address of the machine code."""
        return int(self.compiled.address)

    @property
    def is_kept(self) -> bool:
        """Whether nothing is left to compile, as far as a look at the disk tells."""
        return self._compiled is not None or is_on_disk(self._new())

    def _new(self) -> CFunc:
        arguments = (types.intp,) * self.function.__code__.co_argcount
        compiled = CFunc(self.function, (arguments, types.void), locals={}, options=_OPTIONS)
        use_disk(compiled, self.function)
        return compiled

    @property
    def compiled(self) -> Any:
        """Numba's CFunc, from the disk cache where it is there."""
        if self._compiled is None:
            compiled = self._new()
            compiled.compile()
            self._compiled = compiled
            if not self._compiled.cache_hits:
                Kernel.on_compile(self.name)
        return self._compiled

    def __call__(self, *args: int) -> None:
        """Call the kernel from Python (tests do)."""
        self.compiled.ctypes(*args)


kernel = Kernel

# ---------------------------------------------------------------- arguments of operations


class Struct:
    """The named arguments of an operation: 64-bit integers, or doubles where the name ends in ":f"."""

    def __init__(self, fields: str) -> None:
        parts = [field.partition(":") for field in fields.split()]
        self.fields = tuple(name for name, _, _ in parts)
        self.dtype = np.dtype([(name, "f8" if kind == "f" else "i8") for name, _, kind in parts])
        self.record = from_dtype(self.dtype)

    def pack(self, **values: float) -> np.ndarray:
        """The arguments in memory; every field must be named."""
        if values.keys() != set(self.fields):
            raise TypeError(f"arguments are {self.fields}, not {tuple(values)}")
        packed = np.zeros(1, self.dtype)
        for name, value in values.items():
            packed[name] = value
        return packed


static(Struct, lambda struct: str(struct.dtype.descr))


@intrinsic
def at(ctx: Any, struct: Any, address: Any) -> Codegen:
    """The record at an address: at(LINEAR, args).rows."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return b.inttoptr(args[1], context.get_value_type(sig.return_type))

    return struct.value.record(struct, types.intp), codegen


@intrinsic
def invoke(ctx: Any, address: Any, arguments: Any) -> Codegen:
    """Call the kernel at an address with a tuple of integers."""
    taken = types.UniTuple(types.intp, len(arguments))

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        fnty = ir.FunctionType(ir.VoidType(), [I64] * len(taken))
        b.call(
            b.inttoptr(args[0], fnty.as_pointer()), [b.extract_value(args[1], i) for i in range(len(taken))]
        )
        return context.get_dummy_value()

    return types.void(types.intp, taken), codegen


# ---------------------------------------------------------------- threads


@intrinsic
def atomic_add(ctx: Any, address: Any, value: Any) -> Codegen:
    """Add to an int64; gives what was there before."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return b.atomic_rmw("add", pointer(b, args[0]), args[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def atomic_load(ctx: Any, address: Any) -> Codegen:
    """Read an int64 that other threads write."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return b.load_atomic(pointer(b, args[0]), "seq_cst", 8, typ=I64)

    return types.int64(types.intp), codegen


@intrinsic
def atomic_store(ctx: Any, address: Any, value: Any) -> Codegen:
    """Write an int64 that other threads read."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        # An exchange: llvmlite's store_atomic does not know opaque pointers.
        b.atomic_rmw("xchg", pointer(b, args[0]), args[1], "seq_cst")
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), codegen


@intrinsic
def pause(ctx: Any) -> Codegen:
    """Tell the CPU that this is a spin loop."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        if ISA != "portable":
            call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def sched_yield(ctx: Any) -> Codegen:
    """Let another thread have this core (libc)."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        call(b, "sched_yield", I32, [])
        return context.get_dummy_value()

    return types.void(), codegen


_WALL = time.CLOCK_MONOTONIC
_OF_THREAD = getattr(time, "CLOCK_THREAD_CPUTIME_ID", _WALL)


@intrinsic
def nanoseconds(ctx: Any, clock: Any) -> Codegen:
    """What a clock says that only goes forward (libc)."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        seconds = cgutils.alloca_once(b, ir.ArrayType(I64, 2))
        call(b, "clock_gettime", I32, [b.trunc(args[0], I32), seconds])
        now = b.load(seconds)
        whole = b.mul(b.extract_value(now, 0), const(I64, 1_000_000_000))
        return b.add(whole, b.extract_value(now, 1))

    return types.int64(types.intp), codegen


# The control block of a pool of threads, in int64s, each on a cache line of its own.
ARRIVED, GENERATION, JOB, DONE, TABLE, OPERATIONS, ABORT, LEAVE, LOST = (64 * i for i in range(9))
CONTROL_BYTES = 9 * 64
_JOB = 1 << 16  # a job's number is a multiple of it, and more by how many threads are to do it
_SPINS = 300  # about 10 microseconds of pause instructions before the core is given away


@jit
def barrier(control: int, threads: int) -> None:
    """Wait until all threads are here. Spins, then yields: cheap, and fair when cores are shared."""
    if threads == 1:
        return
    generation = atomic_load(control + GENERATION)
    if atomic_add(control + ARRIVED, 1) == threads - 1:
        atomic_store(control + ARRIVED, 0)
        atomic_store(control + GENERATION, generation + 1)
        return
    _wait(control + GENERATION, generation, generation + 1)


@jit
def _wait(word: int, least: int, most: int) -> None:
    """Wait until a word is not in [least, most)."""
    spins = 0
    while least <= atomic_load(word) < most:
        spins += 1
        if spins < _SPINS:
            pause()
        else:
            sched_yield()


@jit
def _walk_and_count(table: int, operations: int, control: int, thread: int, threads: int) -> None:
    """walk, and add to LOST the nanoseconds in which this thread did not run: others had its core.

    Waiting for other threads is running, but for a core that is given to another program meanwhile.
    """
    begun, ran = nanoseconds(_WALL), nanoseconds(_OF_THREAD)
    walk(table, operations, control, thread, threads)
    atomic_add(control + LOST, nanoseconds(_WALL) - begun - (nanoseconds(_OF_THREAD) - ran))


@jit
def _meet(control: int, thread: int, threads: int, meetings: int) -> bool:
    """A barrier, and what thread 0 found there: whether to leave, so that all leave together.

    Its word stands in one of two places in turn: a slow thread may still read that of the meeting before.
    """
    word = control + LEAVE + 8 * (meetings & 1)
    if thread == 0:
        atomic_store(word, atomic_load(control + ABORT))
    barrier(control, threads)
    return atomic_load(word) != 0


@jit
def walk(table: int, operations: int, control: int, thread: int, threads: int) -> None:
    """Run a table of [operation, args, barrier first] rows of int64, as one of `threads` threads.

    When ABORT is set, all leave at the next barrier.
    """
    meetings = 0
    for i in range(operations):
        row = table + 24 * i
        if _int64(row + 16):
            if _meet(control, thread, threads, meetings):
                return
            meetings += 1
        invoke(_int64(row), (_int64(row + 8), thread, threads))


@jit
def share(total: int, thread: int, threads: int, grain: int) -> tuple[int, int]:
    """The part [begin, end) of `total` that is a thread's, cut at multiples of `grain`."""
    grains = (total + grain - 1) // grain
    begin = grains * thread // threads * grain
    end = grains * (thread + 1) // threads * grain
    return begin, min(end, total)


_int64 = atomic_load


@_entry
def serve(control: int, thread: int, job: int, patience: int) -> int:
    """A worker's loop: walk each job that it is to do; return the last of them after `patience` idle ns."""
    spins, idle_since = 0, 0
    while True:
        posted = atomic_load(control + JOB)
        if posted != job and thread < posted % _JOB:
            job, spins, threads = posted, 0, posted % _JOB
            table, operations = atomic_load(control + TABLE), atomic_load(control + OPERATIONS)
            _walk_and_count(table, operations, control, thread, threads)
            atomic_add(control + DONE, 1)
            continue
        spins += 1
        if spins < _SPINS:
            pause()
        elif spins == _SPINS:
            idle_since = nanoseconds(_WALL)
        elif nanoseconds(_WALL) - idle_since > patience:
            break
        else:
            sched_yield()
    return job


@_entry
def post(control: int, threads: int, table: int, operations: int) -> int:
    """Run a table on the first `threads` of a pool, as thread 0 of it.

    Gives the nanoseconds in which threads did not run, of all of them together; -1 when walks are to end.
    """
    atomic_store(control + DONE, 0)
    atomic_store(control + LOST, 0)
    atomic_store(control + TABLE, table)
    atomic_store(control + OPERATIONS, operations)
    # One word says which job and for whom: a thread that sat out must not take one for the other.
    before = atomic_load(control + JOB)
    atomic_store(control + JOB, before - before % _JOB + _JOB + threads)
    _walk_and_count(table, operations, control, 0, threads)
    _wait(control + DONE, 0, threads - 1)
    return -1 if atomic_load(control + ABORT) else max(0, atomic_load(control + LOST))


@_entry
def abort(control: int) -> int:
    """Make walks end at their next barrier: one that is going on, and those to come."""
    atomic_store(control + ABORT, 1)
    return 0


@_entry
def resume(control: int) -> int:
    """Let walks go on to their ends again; only between two of them."""
    atomic_store(control + ABORT, 0)
    return 0

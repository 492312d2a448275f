"""Emulated devices: the CPU's kernels, behind the walls that a graphics card has.

What lies on one is out of reach for the host and for other devices, but by copies; its memory has an end;
its work is done late (see late.py); and its time is virtual.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Cells, Device, Inputs, Limits, Place
from ggrun.devices.best import Best, TopK
from ggrun.devices.cpu import Cpu, CpuWeight, add_up, view
from ggrun.devices.cpu_memory import LINE, zeros
from ggrun.devices.cpu_recorder import CpuRecorder
from ggrun.devices.late import Late, Schedule
from ggrun.devices.streams import Work
from ggrun.devices.wire import narrowed
from ggrun.errors import GgrunError
from ggrun.gguf import Tensor

LAUNCH = 1.0
"""What a program or a sum takes of virtual time."""
COPY = 0.01
"""What a copy takes."""
LOAD = 0.25
"""What loading a weight to a slot takes."""
MEMORY = 1 << 30
"""Bytes of a device that is not given a limit."""


@dataclass(frozen=True)
class Owned:
    """A thing on one device: memory, a weight, a buffer, a place. Only that device can look inside."""

    owner: "Emulated"
    value: Any

    def __getattr__(self, name: str) -> Any:
        if name in ("rows", "columns", "width"):
            return getattr(self.value, name)
        raise AttributeError(f"the {name} of what lies on {self.owner.name}: only the device has it")


class Emulated:
    """A pretend card. Those that share a schedule are interleaved by it."""

    def __init__(self, name: str, limit: int | None = None, schedule: Schedule | None = None) -> None:
        self.name = name
        self.stream = Late(schedule or Schedule())
        self._cpu = Cpu(1, name, MEMORY if limit is None else limit)

    def available(self) -> int:
        """What the limit leaves."""
        return self._cpu.available()

    def bandwidth(self) -> float:
        """That of the CPU."""
        return self._cpu.bandwidth()

    def recorder(self, limits: Limits) -> Any:
        """A recorder that takes only what lies on this device."""
        return _Recorder(self, self._cpu, limits)

    def zeros(self, nbytes: int, what: str, on_host: bool = False) -> Owned:
        """Memory of this device; what is on the host's takes nothing of the limit."""
        return Owned(self, zeros(nbytes) if on_host else self._cpu.zeros(nbytes, what))

    def vector(self, values: NDArray[np.float32], what: str = "a vector") -> Owned:
        """A copy on this device."""
        memory = self._cpu.zeros(values.nbytes, what).view(np.float32)
        memory[:] = values
        return Owned(self, memory)

    def weight(self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Owned:
        """A copy of the block, which is made late."""
        nbytes = view(tensor, rows, columns).nbytes(tensor)
        memory = self._cpu.zeros(nbytes, f"the weights {tensor.name}")
        weight, load = _placed(tensor, rows, columns, memory)
        self.stream.enqueue(load, COPY)
        return Owned(self, weight)

    def slot(self, nbytes: int) -> "EmulatedSlot":
        """Memory of this device, full of numbers that are none."""
        memory = self._cpu.zeros(nbytes, "weights that come as they are needed")
        memory[:] = 0xFF
        return EmulatedSlot(self, memory)

    @cached_property
    def transfers(self) -> Late:
        """A second stream, which is in the schedule once it is needed."""
        return self.stream.beside()

    def rows(self, weight: Owned, rows: tuple[int, int]) -> Owned:
        """A view on this device."""
        return Owned(self, self.inside(weight).cut(rows))

    def row_bytes(self, kind: str, dim: int) -> int:
        """As the CPU's."""
        return self._cpu.row_bytes(kind, dim)

    def part(self, place: Owned, row: int) -> Owned:
        """A view on this device."""
        return Owned(self, self.inside(place).part(row))

    def write(self, place: Owned, values: NDArray[Any]) -> None:
        """Copy into it."""
        self._cpu.write(self.inside(place), values)

    def copy(self, source: Owned, rows: int, device: Device, target: Place) -> None:
        """A copy that this device makes."""
        mine = self.inside(source)
        self.stream.enqueue(lambda: device.write(target, mine.array(rows)), COPY)

    def narrow(self, source: Owned, rows: int, target: Owned) -> None:
        """A kernel's work."""
        mine, out = self.inside(source), self.inside(target)
        self.stream.enqueue(lambda: self._cpu.write(out, narrowed(mine.array(rows))), LAUNCH)

    def sum(self, places: Sequence[Owned], rows: int, target: Owned) -> None:
        """A kernel's work."""
        mine, out = [self.inside(place) for place in places], self.inside(target)
        self.stream.enqueue(lambda: add_up([m.array(rows) for m in mine], out.array(rows)), LAUNCH)

    def download(self, source: Owned, rows: int, out: NDArray[np.float32]) -> None:
        """A copy that this device makes."""
        mine = self.inside(source)
        self.stream.enqueue(lambda: np.copyto(out, mine.array(rows)), COPY)

    def download_top_k(self, source: Owned, rows: int, top: TopK, best: Best) -> None:
        """A copy that this device makes."""
        mine = self.inside(source)
        self.stream.enqueue(lambda: best.fill(mine.array(rows, top)), COPY)

    def interrupt(self) -> None:
        """End the program that is running, and those that come."""
        self._cpu.interrupt()

    def resume(self) -> None:
        """Let programs run again."""
        self._cpu.resume()

    def close(self) -> None:
        """Take no more work."""
        self.stream.close()
        self._cpu.close()

    def inside(self, thing: Any) -> Any:
        """What a thing is on this device; TypeError for what lies elsewhere."""
        if isinstance(thing, Cells):
            return replace(thing, memory=self.inside(thing.memory))
        if isinstance(thing, Owned):
            if thing.owner is not self:
                raise TypeError(f"{self.name} cannot reach what lies on {thing.owner.name}")
            return thing.value
        if thing is None or isinstance(thing, int | float | str):
            return thing
        raise TypeError(f"{self.name} cannot reach a {type(thing).__name__} of the host")


class EmulatedSlot:
    """See Slot."""

    def __init__(self, device: Emulated, memory: NDArray[np.uint8]) -> None:
        self._device, self._memory, self._end = device, memory, 0
        self.stream = device.transfers

    def begin(self) -> None:
        """Place weights at the front."""
        self._end = 0

    def weight(self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Owned, Work]:
        """A copy of the block, which is made late."""
        nbytes, begin = view(tensor, rows, columns).nbytes(tensor), self._end
        if begin + nbytes > len(self._memory):
            raise GgrunError(f"{self._device.name}: no room for the weights {tensor.name} beside others")
        self._end = begin + -(-nbytes // LINE) * LINE
        weight, load = _placed(tensor, rows, columns, self._memory[begin:][:nbytes])
        return Owned(self._device, weight), lambda: self.stream.enqueue(load, LOAD)


def _placed(
    tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int], memory: NDArray[np.uint8]
) -> tuple[CpuWeight, Work]:
    """A block of a tensor that lies in some memory; and what copies it there."""
    there = view(tensor, rows, columns)
    row, first = tensor.format.nbytes(there.columns), tensor.format.nbytes(columns[0])
    block = memory.reshape(there.experts, there.rows, row)
    whole = tensor.data.reshape(there.experts, tensor.shape[1], tensor.row_bytes)
    part = whole[:, rows[0] : rows[1], first : first + row]
    address, per_expert = memory.ctypes.data, row * there.rows
    here = replace(there, address=address, row_stride=row, expert_stride=per_expert, data=memory)
    return here, lambda: np.copyto(block, part)


class _Recorder:
    """The CPU's recorder, which is given only what lies on the device, and whose results lie there."""

    def __init__(self, device: Emulated, cpu: Cpu, limits: Limits) -> None:
        def garbage(nbytes: int) -> NDArray[np.uint8]:
            memory = cpu.working_memory(nbytes)
            memory[:] = 0xFF  # no numbers: what is read before it is written shows
            return memory

        launch = partial(device.stream.enqueue, cost=LAUNCH)
        self._device, self._cpu = device, CpuRecorder(cpu.pool, limits, launch, garbage)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation, device = getattr(self._cpu, name), self._device

        def checked(*args: Any, **options: Any) -> Any:
            inside = [device.inside(arg) for arg in args]
            result = operation(*inside, **{key: device.inside(value) for key, value in options.items()})
            return None if result is None else Owned(device, result)

        return checked

    def finish(self) -> Any:
        """The host starts programs: they are its own."""
        return self._cpu.finish()

    def feed(self, write: Callable[[Inputs], None]) -> None:
        """A copy from the host."""
        self._device.stream.enqueue(lambda: write(self._cpu.inputs))

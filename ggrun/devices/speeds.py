"""How fast this machine's devices are: measured once, and kept."""

import json
import math
import platform
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, astuple, fields

import numpy as np

from ggrun.devices.base import Device, Inputs, Limits, Rows
from ggrun.devices.kept import Kept
from ggrun.devices.threads import physical_cores
from ggrun.gguf import FORMATS, Tensor
from ggrun.plan.hardware import Speeds

_OF_A_PROMPT = 0.78
"""What a whole prompt reaches of its products' rate: the rest is norms, attention and the ways between."""
_MEASUREMENTS, _PAUSE = 4, 0.25  # seconds between them: others may be using the memory for a while
_LINK_BYTES = 256 << 20
_DRAWN, _BELOW = 1 << 20, 64
"""So many bytes are drawn, all below 64, as scales must be numbers, and repeated. Zeros would be faster: on a
card, and in memory that was never written, which is one page."""


def cpu_key(threads: int | None) -> str:
    """What the speeds of this CPU are kept under."""
    return f"{platform.node()}-{threads or physical_cores()}"


def card_key(name: str, index: int) -> str:
    """What the speeds of a card are kept under."""
    return f"{platform.node()}-{name}-{index}"


def measured_cpu(threads: int | None) -> Speeds:
    """Of `threads` of the CPU. The best of several times: others may be using it."""
    from ggrun.devices.cpu import Cpu  # which needs the kernels

    with closing(Cpu(threads)) as cpu:
        return _measured(cpu, matrix=2048, rows=256)


def measured_card(device: Device) -> Speeds:
    """Of a card; a larger product, as a small one does not fill it."""
    found = _measured(device, matrix=8192, rows=512)
    return Speeds(found.bandwidth, found.operations, found.float_operations, _link(device))


def kept(key: str) -> Speeds | None:
    """What was measured, now or before."""
    return _KEPT.get(key)


def keep(key: str, speeds: Speeds) -> None:
    """Keep it."""
    _KEPT.put(key, speeds, json.dumps(asdict(speeds)))


def forget(key: str) -> None:
    """Measure again the next time."""
    _KEPT.forget(key)


def _read(text: str) -> Speeds:
    """One of kept.NONSENSE for what no device reaches."""
    known = json.loads(text)
    speeds = Speeds(*(float(known[field.name]) for field in fields(Speeds)))
    if not (speeds.bandwidth > 0 and all(0 <= speed < math.inf for speed in astuple(speeds))):
        raise ValueError("no speeds")
    return speeds


_KEPT = Kept("speeds", _read)


def _measured(device: Device, matrix: int, rows: int) -> Speeds:
    bandwidths, quantized, floats, unpacked = [], [], [], []
    for _ in range(_MEASUREMENTS):
        bandwidths.append(device.bandwidth())
        quantized.append(_operations(device, "Q8_0", matrix, rows))
        floats.append(_operations(device, "F16", matrix, rows))
        unpacked.append(_operations(device, "IQ2_XS", matrix, 1) / 2)
        time.sleep(_PAUSE)
    rates = _OF_A_PROMPT * max(quantized), _OF_A_PROMPT * max(floats)
    return Speeds(max(bandwidths), *rates, unpacked=max(unpacked))


def _operations(device: Device, kind: str, size: int, rows: int) -> float:
    """Operations a second of a product such as prompts have: rows with a square matrix of a format."""
    ops = device.recorder(Limits(rows, 1, 1, 1))
    x = ops.input(size)
    ops.linear(x, device.weight(made_up(kind, size, size), (0, size), (0, size)))
    program = ops.finish()
    device.write(ops.place(x), np.random.default_rng(1).standard_normal((rows, size), np.float32))

    def count(inputs: Inputs) -> None:
        inputs.counts[Rows.TOKENS] = rows

    ops.feed(count)
    return 2 * rows * size * size / least_seconds(device, program.run, 8)  # the first may compile


def _link(device: Device) -> float:
    """Bytes a second of uploads from the host."""
    row = 1 << 20
    tensor = made_up("I8", row, _LINK_BYTES // row)

    def upload() -> None:
        device.weight(tensor, (0, _LINK_BYTES // row), (0, row))

    return _LINK_BYTES / least_seconds(device, upload, 4)


def made_up(kind: str, columns: int, rows: int) -> Tensor:
    """A matrix of a format, whose numbers mean nothing."""
    weights = FORMATS[kind]
    drawn = np.random.default_rng(1).integers(0, _BELOW, _DRAWN, np.uint8)
    return Tensor("", (columns, rows), weights, np.resize(drawn, weights.nbytes(columns) * rows))


def least_seconds(device: Device, work: Callable[[], None], times: int) -> float:
    """The least that a piece of work takes."""
    found = []
    for _ in range(times):
        device.stream.synchronize()
        start = time.perf_counter()
        work()
        device.stream.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)

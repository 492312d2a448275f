"""Where the time of a model on several devices goes: what each spends on work, copies and sums."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from ggrun.devices.base import Device
from ggrun.devices.exchange import AllReduce, Part
from ggrun.devices.streams import Mark
from ggrun.engine.batch import Batch
from ggrun.engine.outputs import Outputs
from ggrun.engine.stage import Hop, LoadedStage
from ggrun.engine.workspace import Sender


class Spent(StrEnum):
    """What a device does. What is left of the time, it waits for others or has nothing to do."""

    WORK = "work"
    COPIES = "copies"  # to the next stage or the host, and waiting for room there
    SUMS = "sums"  # with the others of its stage, and waiting for them


@dataclass(frozen=True)
class _Span:
    device: str
    spent: Spent
    begin: Mark
    end: Mark


class Meter:
    """Times of all that was run since it was made, or `clear`ed.

    seconds    of the whole: of each run as long as the streams' clocks say, which may be virtual
    spent      seconds by device and kind
    """

    def __init__(self) -> None:
        self._spans: list[_Span] = []
        self._begins: list[tuple[Device, Mark]] = []
        self._whole: list[tuple[Mark, Mark]] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.seconds, self.spent = 0.0, dict[tuple[str, Spent], float]()
        self.forget()

    def begin(self, devices: Sequence[Device]) -> None:
        """A run over these devices begins."""
        self._begins = [(device, device.stream.mark()) for device in devices]

    def forget(self) -> None:
        """Leave out what was not collected: it may not have been done."""
        self._spans, self._begins, self._whole = [], [], []

    @contextmanager
    def spending(self, devices: Sequence[Device], spent: Spent) -> Iterator[None]:
        """Measure, on the devices' streams, what is enqueued meanwhile."""
        begins = [device.stream.mark() for device in devices]
        yield
        for device, begin in zip(devices, begins, strict=True):
            self._spans.append(_Span(device.name, spent, begin, device.stream.mark()))

    def end(self) -> None:
        """All of the run is enqueued."""
        self._whole = [(begin, device.stream.mark()) for device, begin in self._begins]

    def collect(self) -> None:
        """Count what was measured, when all devices are at rest."""
        self.seconds += max((end.since(begin) for begin, end in self._whole), default=0.0)
        for span in self._spans:
            key = span.device, span.spent
            self.spent[key] = self.spent.get(key, 0.0) + span.end.since(span.begin)
        self.forget()

    def share(self, device: str, spent: Spent) -> float:
        """The part of all time that a device spent so. Sums are made within its work."""
        seconds = self.spent.get((device, spent), 0.0)
        if spent is Spent.WORK:
            seconds -= self.spent.get((device, Spent.SUMS), 0.0)
        return seconds / self.seconds if self.seconds else 0.0


class MeteredStage:
    """A stage whose time is measured. See Hop."""

    def __init__(self, stage: LoadedStage, meter: Meter) -> None:
        self._stage, self._meter = stage, meter
        self._devices = [runner.space.device for runner in stage.runners]

    def run(self, batch: Batch) -> None:
        """Enqueue what is computed."""
        with self._meter.spending(self._devices, Spent.WORK):
            self._stage.run(batch)

    def accept(self, senders: Sequence[Sender], batch: Batch, slot: int) -> None:
        """Enqueue that the residual stream comes here: whoever sends it measures that."""
        self._stage.accept(senders, batch, slot)

    def receive(self, batch: Batch, slot: int) -> None:
        """Enqueue that it is taken in: mostly a time of waiting, which is not counted."""
        self._stage.receive(batch, slot)

    def send(self, batch: Batch, to: Hop, slot: int) -> None:
        """Enqueue that the next one gets the residual stream."""
        with self._meter.spending(self._devices, Spent.COPIES):
            self._stage.send(batch, to, slot)

    def download(self, batch: Batch, outputs: Outputs) -> None:
        """Enqueue that what is wanted of the outputs comes to the host."""
        with self._meter.spending(self._devices, Spent.COPIES):
            self._stage.download(batch, outputs)


class MeteredSums:
    """Sums whose time is measured. See AllReduce."""

    def __init__(self, sums: AllReduce, devices: Sequence[Device], meter: Meter) -> None:
        self._sums, self._devices, self._meter = sums, devices, meter

    def all_reduce(self, parts: Sequence[Part], rows: int) -> None:
        """Enqueue a sum."""
        with self._meter.spending(self._devices, Spent.SUMS):
            self._sums.all_reduce(parts, rows)

    def forget(self) -> None:
        """Begin anew after an error."""
        self._sums.forget()

    def in_graphs(self, rows: int) -> bool:
        """Marks in a graph have no times."""
        return False

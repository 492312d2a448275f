"""The formats of llama-bench's output: md, csv, json, jsonl. Each test is written as soon as it is done."""

import csv
import json
from typing import Any, TextIO

from ggrun.cli.bench_tests import Result
from ggrun.cli.terminal import printable

_WIDTHS = {
    "model": -30, "size": 10, "params": 10, "backend": -10, "threads": 7, "n_batch": 7, "n_ubatch": 8,
    "type_k": 6, "type_v": 6, "test": 15, "t/s": 20, "GB/s": 7, "% bw": 5,
}  # fmt: skip
"""Columns as wide as llama-bench has them; negative: text, from the left."""


class Output:
    """Writes results to a stream, and what has to stand before and after them."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.results = stream, 0

    def add(self, result: Result) -> None:
        """Write one more."""
        if not self.results:
            self.header(result)
        self.row(result)
        self.results += 1
        self.stream.flush()

    def header(self, first: Result) -> None:
        """What stands before the first."""

    def row(self, result: Result) -> None:
        """One result."""
        raise NotImplementedError

    def end(self) -> None:
        """What stands after the last."""


class Markdown(Output):
    """llama-bench's table, with two columns more: what decode reads, and its share of the bandwidth."""

    def __init__(self, stream: TextIO, extra: list[str]) -> None:
        super().__init__(stream)
        self._columns = ["model", "size", "params", "backend", "threads", *extra]
        self._columns += ["test", "t/s", "GB/s", "% bw"]
        self._bandwidths: dict[str, float] = {}

    def header(self, first: Result) -> None:
        """The names of the columns."""
        self._line({name: name for name in self._columns})
        rule = {name: "-" * (abs(w) - 1) + ("-" if w < 0 else ":") for name, w in _WIDTHS.items()}
        self._line(rule)

    def row(self, result: Result) -> None:
        """One line."""
        model, setup, used, (speed, deviation) = result.model, result.setup, result.used, result.ts
        if used.bandwidth:
            of = f"threads: {setup.n_threads}" if used.backends == "CPU" else used.memory
            self._bandwidths[of] = used.bandwidth
        cells = {
            "model": printable(model.type).replace("|", "/").replace("\n", " "),
            "size": _size(model.size),
            "params": _params(model.n_params),
            "backend": used.backends,
            "threads": _threads(result),
            "test": result.case.name,
            "t/s": f"{speed:.2f} ± {deviation:.2f}",
            "GB/s": "" if result.read is None else f"{result.read / 1e9:.2f}",
            "% bw": "" if result.share is None else f"{100 * result.share:.0f}",
        }
        self._line({name: str(getattr(setup, name, "")) for name in self._columns} | cells)

    def end(self) -> None:
        """The version, and the bandwidth that % bw is of."""
        if not self.results:
            return
        from ggrun import __version__

        self.stream.write(f"\nbuild: ggrun {__version__}\n")
        for of, bandwidth in self._bandwidths.items():
            self.stream.write(f"memory bandwidth: {bandwidth / 1e9:.2f} GB/s ({of})\n")
        self.stream.flush()

    def _line(self, cells: dict[str, str]) -> None:
        widths = ((cells[name], _WIDTHS[name]) for name in self._columns)
        texts = (f"{text:<{-w}}" if w < 0 else f"{text:>{w}}" for text, w in widths)
        self.stream.write(f"| {' | '.join(texts)} |\n")


class Csv(Output):
    """A line of names, then one of quoted values for each test."""

    def header(self, first: Result) -> None:
        """The names of the fields."""
        self.stream.write(",".join(first.fields()) + "\n")

    def row(self, result: Result) -> None:
        """One line."""
        writer = csv.writer(self.stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(result.fields().values())


class Jsonl(Output):
    """One object a line."""

    def row(self, result: Result) -> None:
        """One line."""
        self.stream.write(json.dumps(_all_fields(result)) + "\n")


class Json(Output):
    """One array of objects."""

    def row(self, result: Result) -> None:
        """One object."""
        text = json.dumps(_all_fields(result), indent=2).replace("\n", "\n  ")
        self.stream.write(f"{',' if self.results else '['}\n  {text}")

    def end(self) -> None:
        """Close the array, also one without tests."""
        self.stream.write("\n]\n" if self.results else "[]\n")
        self.stream.flush()


FORMATS = {"csv": Csv, "json": Json, "jsonl": Jsonl}
"""All but md, which wants to know the columns."""


def _all_fields(result: Result) -> dict[str, Any]:
    return {**result.fields(), "samples_ns": result.samples_ns, "samples_ts": result.samples_ts}


def _threads(result: Result) -> str:
    """As many as were wanted; "1.4/2" where not all of them took part all the time; none without the CPU."""
    if result.threads is None:
        return ""
    wanted, mean = result.setup.n_threads, f"{result.threads:.1f}"
    return str(wanted) if float(mean) == wanted else f"{mean}/{wanted}"


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.2f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:.2f} GiB"


def _params(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n < 10**9 else f"{n / 1e9:.2f} B"

"""A plan drawn for a terminal: a bar a device, the layers on it, and what is predicted."""

import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from ggrun.errors import escaped
from ggrun.plan.cost import DEPTH
from ggrun.plan.planned import Planned
from ggrun.plan.planner import largest_context
from ggrun.plan.report import bottleneck, flags, notes, size
from ggrun.plan.usage import Use

_WIDTH = 40
_PARTS = (("weights", "34"), ("KV", "32"), ("working", "33"), ("free", "90"))
"""The parts of a bar: names, and colours of a terminal."""
_LETTERS, _ASCII = "█▓▒·", "#=+."
"""What they are drawn with, and where an encoding lacks that."""


def draw(planned: Planned) -> str:
    """The whole text."""
    facts, sizes = planned.facts, planned.sizes
    total = sum(part.total for part in facts.parts) + facts.embedding.total + facts.output.total
    cache = sizes.keys if sizes.keys == sizes.values else f"{sizes.keys}/{sizes.values}"
    lines = [
        f"{escaped(facts.name)}: {size(total)}, {facts.config.layers} layers, "
        f"context {sizes.n_ctx}, cache {cache}"
    ]
    legend = zip(_PARTS, _letters(sys.stdout), strict=True)
    lines += ["  ".join(f"{_painted(x, colour, sys.stdout)} {name}" for (name, colour), x in legend), ""]
    for device in planned.devices:
        if device.name in planned.uses:
            lines += [*_device(planned, device.name, device.label), ""]
    lines += [*_predicted(planned), *(f"note        {note}" for note in notes(planned))]
    return "\n".join(lines)


def _device(planned: Planned, name: str, label: str) -> Iterator[str]:
    use, limit = planned.uses[name], planned.limits[name]
    title = name if label in ("", name) else f"{name} ({label})"
    over = f", {size(use.total - limit)} TOO MUCH" if use.total > limit else ""
    yield f"{title}: {size(use.total)} of {size(limit)}{over}"
    yield f"  [{bar(use, limit, _WIDTH, sys.stdout)}]  " + ", ".join(
        f"{part} {size(n)}" for n, (part, _) in zip(_shares(use, limit), _PARTS, strict=True)
    )
    yield f"  {'; '.join(work(planned, name))}"


def bar(use: Use, limit: int, width: int, stream: TextIO) -> str:
    """The memory of a device, as so many letters that the stream can show."""
    parts, scale = _shares(use, limit), max(limit, use.total, 1)
    ends = [round(width * sum(parts[: i + 1]) / scale) for i in range(len(parts))]
    cells = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    painted = zip(cells, _PARTS, _letters(stream), strict=True)
    return "".join(_painted(letter * n, colour, stream) for n, (_, colour), letter in painted)


def _letters(stream: TextIO) -> str:
    """One for each of _PARTS."""
    try:
        _LETTERS.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return _ASCII
    return _LETTERS


def _shares(use: Use, limit: int) -> tuple[int, int, int, int]:
    """The bytes of each of _PARTS."""
    return use.weights, use.kv, use.working, max(0, limit - use.total)


def work(planned: Planned, name: str) -> Iterator[str]:
    """What a device does, in words."""
    stages = planned.plan.stages
    own = [(stage, m) for stage in stages for m in stage.members if m.device == name]
    halves = {half for stage, _ in own for half in range(*stage.halves)}
    attention = {half // 2 for half in halves if half % 2 == 0}
    ffn = {half // 2 for half in halves if half % 2}
    if any(stage is stages[0] for stage, _ in own):
        yield "embedding"
    for what, layers in (
        ("layers", attention & ffn),
        ("attention of layers", attention - ffn),
        ("feed-forward of layers", ffn - attention),
    ):
        if layers:
            yield f"{what} {_ranges(layers)}"
    if any(stage is stages[-1] and m.vocab[1] > m.vocab[0] for stage, m in own):
        yield "output"
    shares = {(m.kv_heads, m.ff) for stage, m in own if len(stage.members) > 1}
    for kv_heads, ff in sorted(shares):
        yield f"of these key-value heads {_range(kv_heads)} and feed-forward columns {_range(ff)}"


def _ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers, in short: 0-3, 5."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _range(share: tuple[int, int]) -> str:
    return "none" if share[0] == share[1] else f"{share[0]}-{share[1] - 1}"


def _predicted(planned: Planned) -> Iterator[str]:
    speed = planned.speed
    depth = min(DEPTH, planned.sizes.n_ctx)
    full = f", {_rate(speed.last_decode)} with the context full" if planned.sizes.n_ctx > depth else ""
    yield f"decode      {_rate(speed.decode)} tokens/s after {depth} tokens{full}"
    yield f"prefill     {_rate(speed.prefill)} tokens/s (a prompt of {speed.prompt_tokens})"
    yield f"bottleneck  {bottleneck(planned)}"
    as_laid_out, largest = planned.context_as_laid_out, largest_context(planned)
    other = f", {largest} with others" if largest > as_laid_out else ""
    yield f"context     {planned.sizes.n_ctx}; at most {as_laid_out} with the layers where they are{other}"
    yield f"flags       {shlex.join(flags(planned))}"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _painted(text: str, colour: str, stream: TextIO) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if text and stream.isatty() else text

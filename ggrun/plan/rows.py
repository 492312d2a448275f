"""How several cards share each matrix: by heads, feed-forward columns and output rows.

A cut lies where every weight block ends: between key-value heads whose queries' values fill whole blocks of
attn_output, and between whole blocks of ffn_down's rows, in all layers. The granules of ModelFacts say so.
Where a width is no multiple of the granule the last member has the odd end; where it is one granule or less,
nothing can be cut: the member with the largest ratio has that share of each layer, and the others have an
empty one. The rest of the layer is shared all the same.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import comb, gcd

from ggrun.arch.config import Config
from ggrun.plan import Member, Range
from ggrun.plan.facts import ModelFacts

_MOST = 200  # ways to share that are tried


def shared(facts: ModelFacts, devices: Sequence[str], ratios: Sequence[float]) -> tuple[Member, ...]:
    """The members of a row stage, their shares in proportion to ratios as closely as granules allow."""
    c = facts.config
    group = c.heads // c.kv_heads
    kv_heads = cut(c.kv_heads, facts.head_granule, ratios)
    ff = cut(c.ff, facts.ff_granule, ratios)
    vocab = cut(c.vocab, 1, ratios)
    return tuple(
        Member(name, (kv[0] * group, kv[1] * group), kv, columns, rows)
        for name, kv, columns, rows in zip(devices, kv_heads, ff, vocab, strict=True)
    )


def cut(size: int, granule: int, ratios: Sequence[float]) -> list[Range]:
    """Ranges from 0 to size in proportion to ratios, cut at multiples of granule."""
    total = sum(ratios)
    if granule >= size:
        most = max(range(len(ratios)), key=ratios.__getitem__)
        ends = [size if i >= most else 0 for i in range(len(ratios))]
    else:
        ends = [min(size, granule * int(size * at / total / granule + 0.5)) for at in accumulate(ratios)]
        last = max(i for i, ratio in enumerate(ratios) if ratio)
        ends[last:] = [size] * (len(ratios) - last)
    return list(zip([0, *ends[:-1]], ends, strict=True))


def candidates(speeds: Sequence[float]) -> Iterator[tuple[float, ...]]:
    """Ratios to try: in proportion to speeds, and all multiples of one step.

    They do not depend on memory, so that more of it can only add plans to choose from.
    """
    yield proportional(speeds)
    n, steps = len(speeds), 1
    while comb(steps + n, n - 1) <= _MOST and steps < 32:
        steps += 1
    for parts in _compositions(steps, n):
        yield tuple(map(float, parts))


def proportional(speeds: Sequence[float]) -> tuple[float, ...]:
    """Ratios that a user can read and give again: whole numbers up to 100."""
    parts = [max(1, round(100 * speed / max(speeds))) for speed in speeds]
    return tuple(float(part // gcd(*parts)) for part in parts)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def uncut(facts: ModelFacts) -> str:
    """What of a layer cannot be cut, in words; "" when all can."""
    c: Config = facts.config
    reasons = []
    if facts.head_granule >= c.kv_heads:
        reasons.append(f"attention ({c.kv_heads} key-value heads lie in one block of attn_output)")
    if facts.ff_granule >= c.ff:
        reasons.append(f"the feed-forward ({c.ff} columns lie in one block of ffn_down)")
    return " and ".join(reasons)

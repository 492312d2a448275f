"""Plans of every kind for any model, written as data: what a planner could give, and uneven on purpose."""

import random
from collections.abc import Sequence
from itertools import pairwise
from math import lcm

from ggrun.arch.config import Config
from ggrun.gguf import GGUF
from ggrun.plan import Member, Plan, Stage, single, whole

KINDS = (
    "none",
    "layer 2",
    "layer 3",
    "layer 4",
    "row 2",
    "row 3",
    "row 4",
    "overflow 1",
    "overflow most",
    "half layers",
    "experts",
    "row inside layer",
    "regex",
    "everything",
)


class Plans:
    """Plans for a model on four devices."""

    def __init__(self, model: GGUF, devices: Sequence[str]) -> None:
        self.config, self.devices = Config.from_gguf(model), tuple(devices)
        c = self.config
        self.halves = 2 * c.layers
        self._head_unit = _unit(model, "attn_output", c.heads // c.kv_heads * c.value_dim)
        self._ff_unit = lcm(_unit(model, "ffn_down", 1), _unit(model, "ffn_down_exps", 1))

    def __getitem__(self, kind: str) -> Plan:
        """The plan of a kind."""
        a, b, c, d = self.devices
        n = self.halves
        plans = {
            "none": lambda: single(self.config, a),
            "layer 2": lambda: self._stages([a, b], [0, 2, n]),
            "layer 3": lambda: self._stages([a, b, c], [0, 1, n - 1, n]),
            "layer 4": lambda: self._stages([a, b, c, d], [0, 2, 2 + (n - 2) // 2, n, n]),
            "row 2": lambda: Plan((Stage((0, n), self.row([a, b], [1, 2])),)),
            "row 3": lambda: Plan((Stage((0, n), self.row([a, b, c], [3, 1, 2])),)),
            "row 4": lambda: Plan((Stage((0, n), self.row([a, b, c, d], [2, 1, 1, 3])),)),
            "overflow 1": lambda: self._stages([b, a], [0, 2, n]),
            "overflow most": lambda: self._stages([b, a], [0, n - 1, n]),
            "half layers": lambda: self._placed([b if h % 2 and h < n - 1 else a for h in range(n)]),
            "experts": lambda: self._placed([b if h % 2 else a for h in range(n)]),
            "row inside layer": lambda: Plan(
                (Stage((0, n // 2), self.row([a, b], [2, 1])), Stage((n // 2, n), self.row([c, d], [1, 1])))
            ),
            "regex": lambda: self._placed([c if h in (1, 2) else a for h in range(n)]),
            "everything": self._everything,
        }
        return plans[kind]()

    def _stages(self, devices: Sequence[str], cuts: Sequence[int]) -> Plan:
        runs = zip(devices, pairwise(cuts), strict=True)
        return Plan(tuple(Stage(halves, (whole(self.config, device),)) for device, halves in runs))

    def _placed(self, devices: Sequence[str]) -> Plan:
        """Each half layer on a device of its own choice."""
        cuts = [0, *(h for h in range(1, len(devices)) if devices[h] != devices[h - 1]), len(devices)]
        return self._stages([devices[cut] for cut in cuts[:-1]], cuts)

    def _everything(self) -> Plan:
        """An end that only embeds, rows, a feed-forward elsewhere, the output over several devices."""
        a, b, c, d = self.devices
        n, one = self.halves, whole(self.config, d)
        return Plan(
            (
                Stage((0, 0), (one,)),
                Stage((0, 1), self.row([a, b], [1, 3])),
                Stage((1, 2), (whole(self.config, c),)),
                Stage((2, n), self.row([b, d, a], [2, 1, 1])),
                Stage((n, n), self.row([c, a], [1, 4])),
            )
        )

    def row(self, devices: Sequence[str], shares: Sequence[int]) -> tuple[Member, ...]:
        """Members with these shares, as near as the tensors can be cut; some may be empty."""
        c = self.config
        kv_heads = _cut(c.kv_heads, self._head_unit, shares)
        ff, vocab = _cut(c.ff, self._ff_unit, shares), _cut(c.vocab, 1, shares)
        group = c.heads // c.kv_heads
        heads = [(begin * group, end * group) for begin, end in kv_heads]
        return tuple(map(Member, devices, heads, kv_heads, ff, vocab))


def random_plan(config: Config, devices: Sequence[str], rng: random.Random) -> Plan:
    """Any stages, of any members, with any shares: for a model whose tensors can be cut anywhere."""
    halves = 2 * config.layers
    inner = sorted(rng.sample(range(1, halves), rng.randint(0, halves - 1)))
    cuts = [*rng.choice(([0], [0, 0])), *inner, *rng.choice(([halves], [halves, halves]))]
    return Plan(tuple(Stage(halves, _random_members(config, devices, rng)) for halves in pairwise(cuts)))


def _random_members(config: Config, devices: Sequence[str], rng: random.Random) -> tuple[Member, ...]:
    chosen = rng.sample(devices, rng.choice((1, 1, 2, 3)))

    def cut(size: int) -> list[tuple[int, int]]:
        return list(pairwise([0, *sorted(rng.randint(0, size) for _ in chosen[1:]), size]))

    kv_heads, group = cut(config.kv_heads), config.heads // config.kv_heads
    heads = [(begin * group, end * group) for begin, end in kv_heads]
    return tuple(map(Member, chosen, heads, kv_heads, cut(config.ff), cut(config.vocab)))


def _unit(model: GGUF, name: str, step: int) -> int:
    """How many steps of so many columns are whole blocks in all tensors of a name."""
    found = [t for t in model.tensors.values() if t.name.endswith(f".{name}.weight")]
    return lcm(1, *(lcm(step, t.format.block) // step for t in found))


def _cut(size: int, unit: int, shares: Sequence[int]) -> list[tuple[int, int]]:
    ends = [round(size * sum(shares[: i + 1]) / sum(shares) / unit) * unit for i in range(len(shares) - 1)]
    return list(pairwise([0, *(min(end, size) for end in ends), size]))

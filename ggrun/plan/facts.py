"""What a planner must know of a model: the bytes and the work of every half layer, from headers alone."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ggrun.arch.config import Config
from ggrun.gguf import Declared, Outline
from ggrun.plan import Member, Range, whole

ALIGNMENT = 256
"""Bytes that a tensor may lose where it begins: cudaMalloc's alignment, the largest of all devices."""

PAGE = 64
"""Positions in a page of the KV cache."""

EMBEDDING = -1
"""The place of the embedding where half layers have theirs; that of the output is 2 * layers."""

_HALF = re.compile(r"blk\.(\d+)\.(attn_|rope_)?")
_ROWS = {"attn_q": "heads", "attn_k": "kv_heads", "attn_v": "kv_heads", "ffn_gate": "ff", "ffn_up": "ff"}
_COLUMNS = {"attn_output": "heads", "ffn_down": "ff"}
_SLOW = re.compile("IQ[123]|TQ1")
"""Formats that a CPU unpacks to floats before they are multiplied."""
_CACHE_ROW = {"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34)}
_CACHE_PADDING = 32  # a row of the cache is a multiple of so many values


@dataclass
class Part:
    """Sums over the tensors of a half layer, of the embedding or of the output.

    Bytes and weights by what a member's share of them goes by: "heads", "kv_heads", "ff", "vocab", or
    "whole", of which each member has all. Weights are those that one token is multiplied with.
    """

    nbytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    read: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # bytes that one token reads
    weights: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    floats: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # of the weights
    slow: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # of them too: see _SLOW
    experts: int = 0  # bytes, of those above
    padding: int = 0  # bytes beside the tensors' own: alignment, vectors that become float32
    vectors: int = 0  # bytes of those as float32, with alignment
    names: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The bytes of its tensors in the file."""
        return sum(self.nbytes.values())

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two parts that take the same memory and time have the same."""
        sums = (
            tuple(sorted(d.items())) for d in (self.nbytes, self.read, self.weights, self.floats, self.slow)
        )
        return (*sums, self.experts, self.padding)

    def add(self, tensor: Declared, share: str, config: Config) -> None:
        """Count a tensor. Of one that has all experts a token uses those that are its own."""
        expert = config.experts > 0 and "_exps." in tensor.name
        used = (config.experts_used, config.experts) if expert else (1, 1)
        size, numbers = tensor.nbytes, math.prod(tensor.shape)
        self.nbytes[share] += size
        self.read[share] += size * used[0] // used[1]
        if len(tensor.shape) > 1:
            self.weights[share] += numbers * used[0] // used[1]
            self.floats[share] += numbers * used[0] // used[1] if tensor.format.block == 1 else 0
            self.slow[share] += numbers * used[0] // used[1] if _SLOW.match(tensor.format.name) else 0
        self.experts += size if expert else 0
        if len(tensor.shape) == 1:
            self.vectors += ALIGNMENT + 4 * numbers
        self.padding += ALIGNMENT + (max(0, 4 * numbers - size) if len(tensor.shape) == 1 else 0)
        self.names.append(tensor.name)


@dataclass(frozen=True)
class ModelFacts:
    """A model as the planner sees it: parts[2 i] and parts[2 i + 1] are the halves of layer i."""

    name: str
    config: Config
    parts: tuple[Part, ...]
    embedding: Part
    output: Part
    tied: bool  # the embedding is the output matrix too
    head_granule: int  # key-value heads that cannot be parted
    ff_granule: int  # feed-forward columns that cannot be parted

    @classmethod
    def from_outline(cls, model: Outline) -> "ModelFacts":
        """Read a header; GGUFError for what is missing in it or cannot be."""
        config = Config.from_gguf(model)
        parts = [Part() for _ in range(2 * config.layers)]
        embedding, output = Part(), Part()
        for tensor in model.tensors.values():
            share, at = _share(tensor), _place(tensor.name, config.layers)
            part = embedding if at == EMBEDDING else parts[at] if at < 2 * config.layers else output
            part.add(tensor, share, config)
        _one_row(model, embedding)
        downs = [t for t in model.tensors.values() if re.search(r"\.ffn_down(_exps)?\.weight$", t.name)]
        outputs = [t for t in model.tensors.values() if t.name.endswith(".attn_output.weight")]
        group = config.heads // config.kv_heads * config.value_dim
        return cls(
            name=str(model.path),
            config=config,
            parts=tuple(parts),
            embedding=embedding,
            output=output,
            tied="output.weight" not in model.tensors,
            head_granule=_lcm(t.format.block // math.gcd(t.format.block, group) for t in outputs),
            ff_granule=_lcm(t.format.block for t in downs),
        )

    @property
    def items(self) -> int:
        """How many things have a place: the half layers and the output."""
        return len(self.parts) + 1

    @cached_property
    def kinds(self) -> list[int]:
        """For each item the first one that is like it: most layers are alike, and cost the same."""
        first: dict[Any, int] = {}
        marks = [(i % 2 if i < len(self.parts) else 2, self.part(i).signature) for i in range(self.items)]
        return [first.setdefault(mark, i) for i, mark in enumerate(marks)]

    def part(self, item: int) -> Part:
        """A half layer, the output (2 * layers) or the embedding (-1)."""
        if item == EMBEDDING:
            return self.embedding
        return self.output if item == len(self.parts) else self.parts[item]

    def of(self, sums: dict[str, int], member: Member) -> int:
        """What a member's share of such sums is. Exact, as cuts are between blocks."""
        c = self.config
        shares = (
            ("heads", member.heads, c.heads),
            ("kv_heads", member.kv_heads, c.kv_heads),
            ("ff", member.ff, c.ff),
            ("vocab", member.vocab, c.vocab),
        )
        cut = sum(-(-sums.get(name, 0) * _size(part) // whole) for name, part, whole in shares)
        return sums.get("whole", 0) + cut

    def tied_output(self, sums: str, member: Member) -> int:
        """What a member has of the embedding as its output matrix; 0 in a model with an own one."""
        if not self.tied:
            return 0
        return -(-self.embedding_matrix(sums) * _size(member.vocab) // self.config.vocab)

    def embedding_matrix(self, sums: str) -> int:
        """The embedding's "nbytes", "weights", "floats" or "slow", all of it."""
        found: dict[str, int] = getattr(self.embedding, sums)
        return sum(found.values())

    @property
    def token_bytes(self) -> int:
        """The bytes of weights that one token of one sequence reads: each tensor once, but for what it skips.

        It skips the experts that are not its own, and all rows of the embedding but one, unless the embedding
        is the output matrix too.
        """
        read = sum(sum(part.read.values()) for part in (*self.parts, self.output))
        return read + (self.embedding_matrix("nbytes") if self.tied else sum(self.embedding.read.values()))

    def position_bytes(self, keys: str, values: str) -> int:
        """The bytes of one position in the cache of all layers: a token reads them of each before it."""
        return self.config.layers * self.cell_bytes(whole(self.config, ""), keys, values)

    def cell_bytes(self, member: Member, keys: str, values: str) -> int:
        """The bytes of one position in the cache of one layer."""
        c = self.config
        return _size(member.kv_heads) * (cache_row(keys, c.key_dim) + cache_row(values, c.value_dim))


def cache_row(kind: str, dim: int) -> int:
    """The bytes of `dim` values of one head in the KV cache."""
    block, size = _CACHE_ROW[kind]
    return -(-dim // _CACHE_PADDING) * _CACHE_PADDING // block * size


def pages(positions: int) -> int:
    """How many pages hold so many positions."""
    return -(-positions // PAGE)


def _size(share: Range) -> int:
    return share[1] - share[0]


def _lcm(numbers: Iterable[int]) -> int:
    return math.lcm(1, *numbers)


def _share(tensor: Declared) -> str:
    """What a member's share of a tensor goes by, as engine/forward.py cuts it."""
    *_, base, kind = tensor.name.rsplit(".", 2) if tensor.name.count(".") else ("", tensor.name, "")
    base = base.removesuffix("_exps")
    if tensor.name == "output.weight":
        return "vocab"
    if kind == "weight" and base in _COLUMNS:
        return _COLUMNS[base]
    return _ROWS.get(base, "whole") if kind in ("weight", "bias") else "whole"


def _place(name: str, layers: int) -> int:
    """Which half layer a tensor belongs to, or the embedding, or the output."""
    if name == "token_embd.weight":
        return EMBEDDING
    if name == "rope_freqs.weight":  # small, and of every stage with attention: counted in the first
        return 0
    match = _HALF.match(name)
    if match is None or int(match[1]) >= layers:  # a layer too many is refused where it would be loaded
        return 2 * layers
    return 2 * int(match[1]) + (match[2] is None)


def _one_row(model: Outline, embedding: Part) -> None:
    """A token reads one row of the embedding, and multiplies nothing with it."""
    embedding.read = {"whole": model.tensors["token_embd.weight"].row_bytes}

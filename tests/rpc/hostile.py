"""What both sides of a session say when they are honest, and how that is disturbed."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from ggrun.devices.base import Limits
from ggrun.devices.best import TopK
from ggrun.engine.batch import Batch
from ggrun.engine.runner import CacheSpec
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from ggrun.plan.facts import ModelFacts
from ggrun.rpc import PROTOCOL, wire
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.hashes import hashes
from ggrun.rpc.opening import opening, wanted
from tests.rpc.processes import plan_of

ROOM = 64 << 20
MANY = [2_000, pytest.param(100_000, marks=pytest.mark.slow)]


class Script:
    """What an honest client says: loads all of a model but the embedding, and computes."""

    def __init__(self, path: Path) -> None:
        self.model = GGUF(path)
        self.plan: Plan = plan_of(path, ("cpu", 1), ("w/cpu:0:64MB", 4))
        self.cache, self.limits = CacheSpec(2), Limits(8, 8, 2, 2)
        facts = ModelFacts.from_outline(self.model)
        digests = hashes(self.model, sorted(wanted(facts, self.plan, [1]) & self.model.tensors.keys()))
        self.open = opening(
            "w", self.plan, [range(1, 2)], self.model, digests, self.cache, self.limits, 128, 3, pb.F32
        )
        self.hello = pb.Hello(protocol=PROTOCOL, version="0.1.0")

    def batch(self, rng: random.Random) -> Batch:
        n = rng.randint(1, 8)
        slots = np.arange(n, dtype=np.int32)
        outputs = np.array([rng.random() < 0.5 for _ in range(n)])
        pages = np.arange(2, dtype=np.int32)
        top = rng.choice([None, TopK(4, 40)])
        return Batch(slots, slots, np.zeros(n, np.int32), slots, outputs, {0: pages}, top)

    def forward(self, rng: random.Random, number: int) -> pb.Forward:
        batch = self.batch(rng)
        message = wire.forward(batch, 1, number, 0, False)
        message.activations = wire.encode(np.ones((len(batch.tokens), 64), np.float32), pb.F32)
        return message

    def chunk(self, rng: random.Random) -> pb.Chunk:
        i = rng.randrange(len(self.open.tensors))
        data = self.model.tensors[self.open.tensors[i].name].data.tobytes()
        return pb.Chunk(tensor=i, data=data[: rng.randint(1, len(data))])

    def after(self, rng: random.Random, number: int) -> pb.Request:
        """Anything that may come after Open."""
        kinds: list[Callable[[], dict[str, Message]]] = [
            *[lambda: {"forward": self.forward(rng, number)}] * 6,
            lambda: {"chunk": self.chunk(rng)},
            lambda: {"ping": pb.Ping(number=number, ballast=bytes(rng.randint(0, 100)))},
            lambda: {"interrupt": pb.Interrupt()},
            lambda: {"reset": pb.Reset(run=rng.randint(0, 3), resume=True)},
            lambda: {"invite": pb.Invite(part=rng.randint(0, 1))},
            lambda: {"handoff": pb.Handoff(part=0, address="127.0.0.1:9", key=bytes(32))},
        ]
        return pb.Request(**rng.choice(kinds)())  # type: ignore[arg-type]


def mutated(message: Message, rng: random.Random) -> bytes:
    """Bytes near to a message: a field of another value, or bytes that are flipped, lost or made up."""
    changed = type(message)()
    changed.CopyFrom(message)
    if rng.random() < 0.7:
        disturb(changed, rng)
        return changed.SerializeToString()
    data = bytearray(changed.SerializeToString())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.5:
            del data[at : at + rng.randint(1, 20)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 20))
    return bytes(data)


def disturb(message: Message, rng: random.Random) -> None:
    """Change one field, however deep."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    if field.is_repeated:
        if value and rng.random() < 0.2:
            del value[rng.randrange(len(value))]
        elif field.message_type:
            disturb(rng.choice(value), rng) if value else value.add()
        else:
            value[rng.randrange(len(value))] = other(value[0], rng)
    elif field.message_type:
        disturb(value, rng)
    elif field.enum_type:
        setattr(message, field.name, rng.choice([0, 1, 2, 3, 99]))
    else:
        setattr(message, field.name, other(value, rng))


def other(value: Any, rng: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([0, 1, value + 1, max(0, value - 1), rng.getrandbits(8), (1 << 31) - 1, 1 << 31])
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 1e300, float("nan"), float("inf")])
    if isinstance(value, bytes):
        edges = [b"", value[:-1], value + value[:1], rng.randbytes(len(value)), b"\xff" * len(value)]
        return rng.choice([*edges, bytes(len(value)), value[:4]])
    whole = rng.randrange(len(value) + 1)
    digits = "".join(rng.choice("0123456789") if c.isdigit() and rng.random() < 0.1 else c for c in value)
    return rng.choice(["", value[:whole], value + "\x1b[2J", digits, value.replace("0", "-1", 1), "[" * 5000])

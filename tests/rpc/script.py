"""What clients say to a session that has no network under it."""

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
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
from ggrun.rpc.session import Session
from ggrun.rpc.shop import Shop
from tests.rpc.processes import plan_of
from tests.waiting import PATIENCE, until

ROOM = 64 << 20
"""Bytes of a shop's device."""


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


def talk(shop: Shop, requests: Callable[[list[pb.Reply]], Iterator[bytes]]) -> list[pb.Reply]:
    """A session from its first word to its end; requests: may look at the replies so far."""
    replies: list[pb.Reply] = []
    done = threading.Event()

    def answer() -> None:
        for reply in Session(shop, "fuzz", bool).answer(requests(replies)):
            replies.append(reply)
        done.set()

    threading.Thread(target=answer, daemon=True).start()
    assert done.wait(PATIENCE), "the session hangs"
    return replies


def await_kind(replies: list[pb.Reply], kind: str) -> None:
    until(lambda: any(reply.HasField(kind) for reply in replies), kind)

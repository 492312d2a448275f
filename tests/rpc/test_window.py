"""A client has no more under way than slots, whatever happens: a worker would take it for a hostile one."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.engine.hosts import HostLost
from ggrun.errors import Interrupted
from ggrun.rpc import channel, remote
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.remote import Remote, RemoteHop
from ggrun.rpc.wire import ProtocolError
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.rpc.script import Script
from tests.rpc.test_fuzz import FakeLink, welcome

SLOTS = 3


def test_batches_whose_activations_are_pushed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """They follow those, to whose turn the way over here comes last: the first worker is far ahead."""
    first, second, third = (start("--insecure", name=name) for name in "abc")
    hand_off = Remote.hand_off

    def but_the_first(self: Remote, *args: Any) -> None:
        if self.name != first.address:
            hand_off(self, *args)

    monkeypatch.setattr(Remote, "hand_off", but_the_first)
    stages = [(first.device(), 4), (second.device(), 9), (third.device(), 16)]
    addresses = ",".join(worker.address for worker in (first, second, third))
    tokens = [(7 * i) % 500 for i in range(200)]
    with (
        LLM(demo_model(), n_ctx=256, threads=1, n_ubatch=8) as here,
        LLM(
            demo_model(), n_ctx=256, threads=1, n_ubatch=8, plan=plan_of(Path(demo_model()), *stages),
            rpc=RpcOptions(addresses, insecure=1, tell=pytest.fail),
        ) as llm,
    ):  # fmt: skip
        hops: Any = llm._engine._pipeline._stages
        assert [hop.pushes_to for hop in hops] == [None, hops[2], None]
        for _ in range(2):
            assert np.array_equal(llm.logits(tokens), here.logits(tokens))


def begun(script: Script, part: range) -> tuple[Any, RemoteHop]:
    """A client of a worker that says nothing, and its hop."""
    made = Remote(FakeLink(welcome()), pb.F32)  # type: ignore[arg-type]
    (hop,) = made.begin(script.plan, [part], script.model, script.cache, script.limits, SLOTS)
    return made, hop


def test_a_run_that_is_broken_is_not_gone_on_with(path: Path) -> None:
    """Batches that wait for their turn are not sent when it comes by an error."""
    script = Script(path)
    client, hop = begun(script, range(1))
    sent: list[Any] = []
    client.link.send = lambda **kind: sent.extend(kind)
    for _ in range(SLOTS):
        hop.run(script.batch(random.Random(3)))
    client.interrupt()
    with pytest.raises(Interrupted):
        hop.run(script.batch(random.Random(3)))
    assert sent == ["forward"] * SLOTS + ["interrupt"]


@pytest.mark.parametrize(
    "late",
    [pb.Reply(invited=pb.Invited(key=bytes(32))), pb.Reply(handed=pb.Handed(ok=True))],
    ids=["invite", "hand-off"],
)
def test_a_worker_that_says_nothing_of_another(
    path: Path, monkeypatch: pytest.MonkeyPatch, late: pb.Reply
) -> None:
    """It is not used: what it says late may be that it pushes results which are waited for here."""
    assert remote._WAIT > 2 * channel.ACROSS, "the time that it takes itself"
    monkeypatch.setattr(remote, "_WAIT", 0.01)
    script = Script(path)
    (first, _), (second, _) = begun(script, range(1, 2)), begun(script, range(1, 2))
    asked = second
    if late.HasField("handed"):
        asked, second.invite = first, lambda part: bytes(32)
    with pytest.raises(HostLost, match="the worker has not answered for"):
        first.hand_off(0, second, 0)
    with pytest.raises(ProtocolError, match="the worker answers what nobody asked"):
        asked.link.take(late.SerializeToString())

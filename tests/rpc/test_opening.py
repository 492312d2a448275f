"""What a client's planner gives to a worker is what the worker reserves for it."""

import pytest

from ggrun.devices.base import Limits
from ggrun.engine.hosts import hops
from ggrun.engine.runner import CacheSpec
from ggrun.gguf import GGUF
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.options import PlanOptions
from ggrun.plan.planned import Planned
from ggrun.plan.planner import make_plan
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.opening import Opening, opening, read, wanted
from ggrun.rpc.wire import ProtocolError, forward_room
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GGUF:
    tiny = Tiny(layers=6, width=256, ff=512, vocab=500, context=512)
    return GGUF(tiny.write(tmp_path_factory.mktemp("opening") / "model.gguf"))


def device(name: str, free: int) -> DeviceInfo:
    """Workers are fast, this machine is slow."""
    if name == "cpu":
        return DeviceInfo(name, free, free, 1e7, 1e8, 1e7, shared=False)
    return DeviceInfo(name, free, free, 1e11, 1e12, 1e10, shared=False, network=1e9, latency=1e-6)


def planned(model: GGUF, workers: list[str], free: int) -> Planned:
    """A plan that fills these devices of workers, and puts what is left on the CPU."""
    devices = [*(device(name, free) for name in workers), device("cpu", 1 << 30)]
    made = make_plan(ModelFacts.from_outline(model), devices, PlanOptions(n_ctx=256, n_ubatch=64))
    assert made.fits
    return made


def opened(model: GGUF, made: Planned, host: str, slots: int) -> Opening:
    """What the worker reads of what the client sends."""
    parts = [part for name, part in hops(made.plan) if name == host]
    digests = dict.fromkeys(wanted(made.facts, made.plan, [i for part in parts for i in part]), bytes(32))
    pages, tokens = made.sizes.pages, made.sizes.tokens
    message = opening(
        host, made.plan, parts, model, digests, CacheSpec(pages), Limits(tokens, tokens, 1, pages), 256,
        slots, pb.F32,
    )  # fmt: skip
    return read(message, [name.partition("/")[2] for name in made.uses if name.startswith(host)])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("names", [["a:1/{}:0"], ["a:1/{}:0", "b:1/{}:0"], ["a:1/{}:0", "a:1/{}:1"]])
def test_both_sides_count_alike(model: GGUF, kind: str, names: list[str]) -> None:
    """So a plan that fills a worker is not refused by it."""
    workers = [name.format(kind) for name in names]
    most = planned(model, workers[:1], 1 << 30).uses[workers[0]]
    made = planned(model, workers, most.total - most.weights * 5 // 8)
    used = {name: use.total for name, use in made.uses.items()}
    assert set(used) == {*workers, "cpu"}
    for host in {name.partition("/")[0] for name in workers}:
        needs = opened(model, made, host, len(used) + 1).needs()
        assert {f"{host}/{name}": n for name, n in needs.items()} == {
            name: n for name, n in used.items() if name.startswith(host)
        }


def test_more_batches_under_way_than_are_counted(model: GGUF) -> None:
    made = planned(model, ["a:1/cpu:0"], 1 << 30)
    slots = len(made.uses) + 1
    opened(model, made, "a:1", slots)
    with pytest.raises(ProtocolError, match=f"{slots + 1} at a time cannot be"):
        opened(model, made, "a:1", slots + 1)


@pytest.mark.parametrize("tokens", [16, 256])
@pytest.mark.parametrize("workers", [1, 3, 6])
def test_what_is_reserved_is_more_than_what_is_under_way(model: GGUF, tokens: int, workers: int) -> None:
    """So no honest client is sent away, however far a worker or the network is behind: see session."""
    names = [f"{i}:1/cpu:0" for i in range(workers)]
    facts, options = ModelFacts.from_outline(model), PlanOptions(n_ctx=256, n_ubatch=tokens)

    def made_for(room: int) -> Planned:
        return make_plan(facts, [*(device(name, room) for name in names), device("cpu", 1 << 30)], options)

    (whole,) = (use for name, use in made_for(1 << 30).uses.items() if name != "cpu")
    made = made_for(whole.working + (whole.weights + whole.kv) // workers * 3 // 2)
    slots = len(made.uses) + 1
    hosts = {name.partition("/")[0] for name in made.uses} - {"cpu"}
    assert len(hosts) > workers // 2
    for host in hosts:
        opening = opened(model, made, host, slots)
        (_,) = opening.parts
        batch = forward_room(opening.limits, opening.activation_bytes).nbytes
        result = max(opening.activation_bytes, opening.logits_bytes)
        under_way = slots * (batch + 2 * opening.activation_bytes + result)  # an inbox has twice as many
        assert under_way < sum(opening.needs().values()) + slots * opening.logits_bytes

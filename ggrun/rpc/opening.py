"""What a client asks a worker to load: the Open message, written and read."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ggrun.arch.config import Config
from ggrun.devices.base import Limits
from ggrun.engine.runner import CacheSpec
from ggrun.gguf import Outline
from ggrun.gguf.types import FORMATS_BY_ID, Format, Value, tensor_nbytes
from ggrun.plan import Plan, host_of
from ggrun.plan.cuts import check_cuts
from ggrun.plan.facts import EMBEDDING, PAGE, ModelFacts
from ggrun.plan.options import CACHE_TYPES
from ggrun.plan.usage import Sizes, plan_use
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.wire import Bounds, ProtocolError, Room, activation_bytes, result_room

MOST_TENSORS = 1 << 14
ROOM = Room(2 << 20, MOST_TENSORS + 256)
"""Of an Open. One of 100 layers with experts, each a stage, has 1000 tensors and 150 KiB. Parsed, the worst
takes 30 MiB (numbers of shapes), and its JSON 50 MiB (empty objects)."""
MOST_SLOTS = 64
_MOST_BYTES = 1 << 44
_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
_PATH = Path("the client's model")


@dataclass(frozen=True)
class Declared:
    """A tensor as the client's file declares it."""

    name: str
    shape: tuple[int, ...]
    format: Format
    sha256: bytes  # empty: the worker does not need it

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.format.nbytes(self.shape[0])

    @property
    def nbytes(self) -> int:
        """The bytes of the whole tensor."""
        return tensor_nbytes(self.shape, self.format)


@dataclass(frozen=True)
class Opening:
    """What an Open message says, checked."""

    plan: Plan
    parts: tuple[range, ...]
    outline: Outline
    tensors: tuple[Declared, ...]
    config: Config
    sizes: Sizes
    cache: CacheSpec
    limits: Limits
    slots: int
    form: "pb.Form"

    @property
    def stages(self) -> list[int]:
        """The numbers of those that are to be loaded."""
        return [i for part in self.parts for i in part]

    @property
    def devices(self) -> list[str]:
        """The names of those that they run on."""
        members = (member.device for i in self.stages for member in self.plan.stages[i].members)
        return list(dict.fromkeys(members))

    @property
    def plan_devices(self) -> int:
        """How many the whole plan has, here and elsewhere."""
        return len({member.device for stage in self.plan.stages for member in stage.members})

    @property
    def activation_bytes(self) -> int:
        """The most bytes of a batch's activations on the wire."""
        return activation_bytes(self.limits.tokens, self.config.width, self.form)

    @property
    def logits_bytes(self) -> int:
        """The most bytes of a batch's logits, where they are made here."""
        here = self.parts[-1].stop == len(self.plan.stages)
        return result_room(self.limits, 0, self.config.vocab).nbytes if here else 0

    @property
    def bounds(self) -> Bounds:
        """What batches must keep to."""
        return Bounds(self.limits, self.cache.pages * PAGE, self.config.vocab)

    def needs(self) -> dict[str, int]:
        """The bytes that the stages take of each device, as the client's planner counts them."""
        facts = ModelFacts.from_outline(self.outline)
        arrives = any(self.stages)  # batches come into any stage but the first
        peers = max(self.plan_devices - 1, int(arrives))
        uses = plan_use(facts, self.plan, self.sizes, peers)
        return {name: uses[name].total for name in self.devices}


# ---------------------------------------------------------------- the client's side


def wanted(facts: ModelFacts, plan: Plan, stages: Sequence[int]) -> set[str]:
    """The names of the tensors that stages need."""
    names: set[str] = set()
    for i in stages:
        halves = plan.stages[i].halves
        names.update(name for half in range(*halves) for name in facts.part(half).names)
        if any(half % 2 == 0 for half in range(*halves)):
            names.add("rope_freqs.weight")
        if i == 0 or (i == len(plan.stages) - 1 and facts.tied):
            names.update(facts.part(EMBEDDING).names)
        if i == len(plan.stages) - 1:
            names.update(facts.output.names)
    return names


def opening(
    host: str,
    plan: Plan,
    parts: Sequence[range],
    model: Outline,
    hashes: Mapping[str, bytes],
    cache: CacheSpec,
    limits: Limits,
    n_ctx: int,
    slots: int,
    form: "pb.Form",
) -> "pb.Open":
    """The message for a worker that is called `host` in the plan; hashes: of the tensors that it needs."""
    arch = model.architecture
    keys = [key for key in model.metadata if key == "general.architecture" or key.startswith(f"{arch}.")]
    return pb.Open(
        plan=_as_there(plan, host).to_json(),
        parts=[pb.Part(begin=part.start, end=part.stop) for part in parts],
        metadata=json.dumps({key: _plain(model.metadata[key]) for key in keys}),
        tensors=[
            pb.Tensor(name=t.name, shape=t.shape, format=t.format.id, sha256=hashes.get(t.name, b""))
            for t in model.tensors.values()
        ],
        n_ctx=n_ctx,
        n_ubatch=limits.tokens,
        outputs=limits.outputs,
        sequences=limits.sequences,
        cache_keys=cache.keys,
        cache_values=cache.values,
        slots=slots,
        form=form,
    )


def _as_there(plan: Plan, host: str) -> Plan:
    """The plan with a worker's devices called as the worker calls them."""

    def renamed(device: str) -> str:
        return device.removeprefix(f"{host}/") if host_of(device) == host else f"elsewhere/{device}"

    stages = [
        replace(stage, members=tuple(replace(m, device=renamed(m.device)) for m in stage.members))
        for stage in plan.stages
    ]
    return Plan(tuple(stages), plan.kv_on_host)


def _plain(value: Value) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


# ---------------------------------------------------------------- the worker's side


def read(message: "pb.Open", offered: Sequence[str]) -> Opening:
    """Check all that a client wants; a GgrunError of one line for what cannot be. offered: devices."""
    tensors = _tensors(message)
    outline = Outline(_PATH, _metadata(message.metadata), {t.name: t for t in tensors})
    config = Config.from_gguf(outline)
    plan = Plan.from_json(message.plan)
    plan.check(config)
    if plan.kv_on_host:
        raise ProtocolError("a worker keeps keys and values on its devices")
    check_cuts(plan, outline, config)
    sizes = _sizes(message)
    found = Opening(
        plan=plan,
        parts=_parts(message, len(plan.stages)),
        outline=outline,
        tensors=tensors,
        config=config,
        sizes=sizes,
        cache=CacheSpec(sizes.pages, sizes.keys, sizes.values),
        limits=Limits(message.n_ubatch, message.outputs, sizes.sequences, sizes.pages),
        slots=message.slots,
        form=message.form,
    )
    if strange := [name for name in found.devices if name not in offered]:
        raise ProtocolError(f"there is no device {strange[0]!r:.40} here: there are {', '.join(offered)}")
    _check_limits(found)
    return found


def _tensors(message: "pb.Open") -> tuple[Declared, ...]:
    if len(message.tensors) > MOST_TENSORS:
        raise ProtocolError(f"{len(message.tensors)} tensors: more than {MOST_TENSORS}")
    found = {t.name: _tensor(t) for t in message.tensors}
    if len(found) < len(message.tensors):
        raise ProtocolError("a tensor is there twice")
    if sum(t.nbytes for t in found.values()) > _MOST_BYTES:
        raise ProtocolError("the tensors are larger than any model")
    return tuple(found.values())


def _tensor(t: "pb.Tensor") -> Declared:
    form = FORMATS_BY_ID.get(t.format)
    if not _NAME.fullmatch(t.name) or form is None or len(t.sha256) not in (0, 32):
        raise ProtocolError(f"tensor {t.name!r:.40}: a name, a format or a hash that there is not")
    tensor = Declared(t.name, tuple(t.shape), form, t.sha256)
    try:
        if tensor.nbytes <= _MOST_BYTES:
            return tensor
    except ValueError as error:
        raise ProtocolError(f"tensor {t.name!r:.40} has {error}") from None
    raise ProtocolError(f"tensor {t.name!r:.40} is larger than any model")


def _metadata(text: str) -> dict[str, Value]:
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("the metadata are no JSON") from None
    if not isinstance(known, dict):
        raise ProtocolError("the metadata are no object")
    return {key: _value(key, value) for key, value in known.items()}


def _value(key: str, value: Any) -> Value:
    if isinstance(value, list):
        if all(isinstance(v, str) for v in value):
            return value
        if not all(isinstance(v, int | float) and abs(v) < 1 << 63 for v in value):
            raise ProtocolError(f"metadata {key!r:.40}: a list of different things")
        return np.asarray(value)
    if not isinstance(value, bool | int | float | str):
        raise ProtocolError(f"metadata {key!r:.40}: no value that a model file can have")
    return value


def _parts(message: "pb.Open", stages: int) -> tuple[range, ...]:
    parts = [range(part.begin, part.end) for part in message.parts]
    at = 0
    for part in parts:
        if not at <= part.start < part.stop <= stages:
            raise ProtocolError(f"stages {part.start} to {part.stop} of {stages} cannot be loaded")
        at = part.stop
    if not parts:
        raise ProtocolError("no stages to load")
    return tuple(parts)


def _sizes(message: "pb.Open") -> Sizes:
    for kind in (message.cache_keys, message.cache_values):
        if kind not in CACHE_TYPES:
            raise ProtocolError(f"cache type {kind!r:.40} is unknown")
    sizes = (message.n_ctx, message.n_ubatch, message.outputs, message.sequences)
    if min(sizes) < 1 or max(sizes) >= 1 << 31 or message.sequences > 1 << 16:
        raise ProtocolError(f"sizes {sizes} cannot be")
    return Sizes(message.n_ctx, message.n_ubatch, message.sequences, message.cache_keys, message.cache_values)


def _check_limits(found: Opening) -> None:
    limits, vocab = found.limits, found.config.vocab
    if limits.outputs > found.sizes.outputs(vocab):
        raise ProtocolError(f"{limits.outputs} logits of {vocab} are more than one batch may want")
    # One batch for each device, and one on its way: see Pipeline. The memory is counted for so many.
    most = min(found.plan_devices + 1, MOST_SLOTS)
    if limits.tokens > found.sizes.n_ctx or not 1 <= found.slots <= most:
        raise ProtocolError(f"{limits.tokens} tokens a batch, {found.slots} at a time cannot be")
    if found.form not in (pb.F32, pb.F16, pb.BF16):
        raise ProtocolError(f"activations of form {found.form} are unknown")

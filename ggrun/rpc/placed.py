"""A model where its plan puts it, here and on workers; placed anew when a worker is lost."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggrun.devices import open_devices
from ggrun.devices.base import Device
from ggrun.devices.kept import tell
from ggrun.devices.local import planned_here
from ggrun.devices.progress import Progress, Uploads, silent
from ggrun.engine.engine import Engine
from ggrun.engine.hosts import HostLost
from ggrun.engine.loaded import SUMS, Sums
from ggrun.engine.meter import Meter
from ggrun.engine.split_trial import with_mode
from ggrun.errors import UsageError
from ggrun.gguf import GGUF
from ggrun.plan import Plan, host_of
from ggrun.plan.facts import ModelFacts
from ggrun.plan.options import PlanOptions
from ggrun.plan.planned import Planned
from ggrun.plan.report import DoesNotFit, left_out
from ggrun.rpc.native_log import quiet_import

if TYPE_CHECKING:
    from ggrun.rpc.workers import Keys, Workers

Tell = Callable[[str], None]


@dataclass(frozen=True)
class RpcOptions:
    """Which workers (None: none), and how they are spoken to; see ggrun.rpc.workers.connect."""

    addresses: str | None = None
    insecure: int = 0
    form: str = "f32"
    certificate: tuple[str, str] | None = None
    progress: Progress = silent
    tell: Tell = logging.getLogger(__name__).warning

    def connect(self) -> "Workers | None":
        """The workers, connected."""
        if self.addresses is None:
            return None
        with quiet_import():  # which takes a while
            from ggrun.rpc.workers import connect

        return connect(
            self.addresses, insecure=self.insecure, form=self.form, certificate=self.certificate,
            progress=self.progress, tell=self.tell,
        )  # fmt: skip

    def reconnect(self, keys: "Keys") -> "tuple[Workers, list[HostLost]]":
        """Workers that were reached before."""
        from ggrun.rpc.workers import reconnect

        return reconnect(keys, form=self.form, certificate=self.certificate, progress=self.progress)


@dataclass(frozen=True)
class Where:
    """What is said of this machine; see LLM. Without a plan one is made for what there is."""

    devices: str | None = None
    threads: int | None = None
    plan: Plan | None = None
    p2p: str = "auto"
    sums: Sums = SUMS
    meter: Meter | None = None
    progress: Progress = silent


class Placed:
    """A loaded model: `engine`, this machine's `devices`, and the `planned` that says where all is."""

    def __init__(
        self,
        model: GGUF,
        wishes: PlanOptions,
        where: Where,
        rpc: RpcOptions | None = None,
    ) -> None:
        self._model, self._wishes, self._rpc = model, wishes, rpc or RpcOptions()
        self._where = where
        self.devices: dict[str, Device] = {}
        self._workers: Workers | None = None
        self._keys: Keys | None = None  # of workers that were reached, whether they are still used or not
        self._lost: list[str] = []
        self._untold: list[HostLost] = []
        self.engine: Engine
        self.planned: Planned
        self._load()

    def without(self, lost: HostLost) -> Engine:
        """Load it again, without a worker that is gone. GgrunError, which says why, when nothing fits.

        The layers that were on it are read from the file, those on other workers from their caches. After
        an error nothing is loaded, and the next call tries all workers again: one may have come back.
        """
        if self.devices or self._workers:
            self._leave_out(lost)
        self.close()
        # What is in the context must find its place again.
        self._wishes = replace(self._wishes, n_ctx=self.planned.sizes.n_ctx)
        try:
            self._load()
        except BaseException:
            self._lost, self._untold = [], []
            raise
        return self.engine

    def close(self) -> None:
        """Let go of devices and workers."""
        for device in self.devices.values():
            device.close()
        if self._workers:
            self._workers.close()
        self.devices, self._workers = {}, None

    def _load(self) -> None:
        """Load it, with less where workers get lost meanwhile; a plan that names them is given up then."""
        retried: set[str] = set()
        while True:
            try:
                self._try()
                return
            except HostLost as lost:
                self.close()
                if self._keys is None:  # a worker that a user names must be there
                    raise
                if lost.host in retried:
                    self._leave_out(lost)
                retried.add(lost.host)  # once more: what was sent before is not sent again
            except BaseException as error:
                self.close()
                if self._untold and isinstance(error, DoesNotFit):
                    losses = "; ".join(str(lost) for lost in self._untold)
                    raise DoesNotFit(f"{losses}; what is left is too small: {error}") from None
                raise

    def _leave_out(self, lost: HostLost) -> None:
        self._lost.append(lost.host)
        self._untold.append(lost)

    def _connect(self) -> "Workers | None":
        """Those of the workers that are to be had; at first all that were named."""
        if self._keys is None:
            workers = self._rpc.connect()
            self._keys = workers.keys if workers else {}
            return workers
        left = {name: key for name, key in self._keys.items() if name not in self._lost}
        workers, lost = self._rpc.reconnect(left)
        for each in lost:
            self._leave_out(each)
        return workers

    def _tell_unused(self) -> None:
        """Say which workers the planner gives nothing: whoever named them waits for more."""
        used = {host_of(name) for name in self.planned.uses}
        if self._workers and not (self._lost or self.planned.own):
            for host in sorted(self._workers.hosts.keys() - used):
                why = "it gets no part of the model (ggrun plan says why; -ngl gives it some)"
                self._rpc.tell(f"{host} is left out: {why}")

    def _try(self) -> None:
        self._workers = self._connect()
        w, wishes = self._where, self._wishes
        if self._lost:  # what was said of devices may name one of them
            w = replace(w, plan=None)
            wishes = replace(wishes, overrides=(), tensor_split=None, row_groups=None, order=None)
        uploads = Uploads(w.progress)
        remote = self._workers.devices if self._workers else []

        def make(facts: ModelFacts, options: PlanOptions) -> Planned:
            return planned_here(facts, w.devices, w.threads, options, w.plan, w.p2p, remote)

        def opened(names: Iterable[str]) -> dict[str, Device]:
            return open_devices((name for name in names if not host_of(name)), w.threads, w.p2p, uploads)

        if remote and wishes.split_mode == "auto":  # which is faster is tried on one machine: see make_plan
            wishes = wishes.in_mode("layer")
        if w.plan is None:
            wishes = with_mode(self._model, wishes, make, opened, w.sums)
        facts = ModelFacts.from_outline(self._model)
        try:
            self.planned = make(facts, wishes)
        except UsageError:
            if not (self._lost and wishes.rows):
                raise
            self.planned = make(facts, wishes.in_mode("layer"))  # no machine has several cards any longer
        if self._wishes.rows and (unused := list(left_out(self.planned))):
            tell(f"-sm {self._wishes.split_mode}: {'; '.join(unused)}")
        while self._untold:
            self._rpc.tell(f"{self._untold.pop(0)}: going on without it")
        plan = self.planned.plan
        self.devices = opened({m.device for stage in plan.stages for m in stage.members})
        cards = [name for name in self.planned.uses if name in self.devices and name != "cpu"]
        uploads.begin(sum(self.planned.uses[name].weights for name in cards))
        hosts = self._workers.hosts if self._workers else None
        self._tell_unused()
        try:
            self.engine = Engine(
                self._model, facts.config, plan, self.devices, self.planned.sizes, hosts, w.meter, w.sums,
                self.planned.offloads,
            )  # fmt: skip
        except BaseException:
            for device in self.devices.values():
                device.stream.abandon()  # what was to be loaded
            raise
        uploads.end()
        if self._workers:
            self._workers.connect_parts(plan)

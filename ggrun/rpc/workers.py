"""The workers that a model is loaded with: found, joined, connected, and let go of."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from ggrun.devices.progress import Progress, silent
from ggrun.engine.hosts import HostLost, hops
from ggrun.errors import GgrunError, UsageError
from ggrun.plan import Plan
from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc.channel import Certificates, is_loopback, split_address
from ggrun.rpc.keys import Key, known_worker, known_workers
from ggrun.rpc.link import Link
from ggrun.rpc.remote import Remote
from ggrun.rpc.wire import FORMS


class Workers:
    """Connections to workers. `hosts` are what an Engine takes, by their addresses."""

    def __init__(self, remotes: Sequence[Remote]) -> None:
        self.hosts = {remote.name: remote for remote in remotes}

    @property
    def devices(self) -> list[DeviceInfo]:
        """All of theirs."""
        return [device for remote in self.hosts.values() for device in remote.devices]

    def connect_parts(self, plan: Plan) -> None:
        """Let workers whose stages follow each other do without the way over here, where they can."""
        ways, numbers = hops(plan), dict.fromkeys(self.hosts, 0)
        parts: list[tuple[Remote, int] | None] = []
        for host, _ in ways:
            parts.append((self.hosts[host], numbers[host]) if host else None)
            if host:
                numbers[host] += 1
        for a, b in pairwise(parts):
            if a and b:
                a[0].hand_off(a[1], *b)

    def close(self) -> None:
        """End all sessions, at the same time."""
        for remote in self.hosts.values():
            remote.leave()
        for remote in self.hosts.values():
            remote.close()


def connect(
    addresses: str,
    *,
    insecure: int = 0,
    form: str = "f32",
    certificate: tuple[str, str] | None = None,
    progress: Progress = silent,
    without: Sequence[str] = (),
) -> Workers:
    """Connect to workers: "host:port,host:port", or "auto".

    HostLost when one cannot be used, GgrunError or UsageError when something here cannot.

    insecure       1: plain text to this machine's own, 2: to any
    form           of activations on the wire: f32, f16 or bf16
    certificate    files of one and its private key, for workers that want one
    without        addresses that are left out
    """
    if form not in FORMS:
        raise UsageError(f"activations of form {form!r:.20}: there are {', '.join(FORMS)}")
    named = _named(addresses, insecure, needed=not without)
    wanted = {name: key for name, key in named.items() if name not in without}
    own = _certificates(certificate, wanted, again=bool(without)) if certificate and wanted else None
    remotes: list[Remote] = []
    try:
        for name, key in wanted.items():
            remotes.append(_remote(name, key, own, form, progress))
    except BaseException:
        Workers(remotes).close()
        raise
    return Workers(remotes)


def _remote(name: str, key: Key | None, own: Certificates | None, form: str, progress: Progress) -> Remote:
    """A worker, connected. HostLost, whatever the reason is: others may go on without it."""
    link = None
    try:
        link = Link(name, key, own)
        return Remote(link, FORMS[form], progress)
    except BaseException as error:
        if link:
            link.close()
        if not isinstance(error, GgrunError):
            raise
        raise HostLost(name, str(error).removeprefix(f"{name}: ")) from None


def _certificates(files: tuple[str, str], wanted: Iterable[str], again: bool) -> Certificates:
    """A client's own. again: a model goes on without a worker; if it has to, without the others too."""
    try:
        return Certificates.read(*files)
    except GgrunError as error:
        if not again:
            raise
        raise HostLost(next(iter(wanted)), str(error)) from None


def _named(addresses: str, insecure: int, needed: bool) -> dict[str, Key | None]:
    """The workers of a list, and what is known of each. needed: there must be one."""
    if addresses.strip() != "auto":
        names = dict.fromkeys(name for part in addresses.split(",") if (name := part.strip()))
        return {name: _key(name, insecure) for name in names}
    from ggrun.rpc.discovery import discovered

    found = discovered(known_workers())
    if needed and not found:
        raise GgrunError("--rpc auto: no worker that was joined is found in this network")
    return dict(found)


def _key(address: str, insecure: int) -> Key | None:
    """What is known of a worker; None: plain text."""
    host, _ = split_address(address)
    if insecure > 1 or (insecure and is_loopback(host)):
        return None
    if insecure:
        raise UsageError(f"{address}: --insecure is for this machine's own workers; twice for any")
    if (key := known_worker(address)) is None:
        raise UsageError(f"{address}: was not joined: paste the join line that ggrun worker printed there")
    return key

"""The workers that a model is loaded with: found, joined, connected, and let go of."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from ggrun.devices.progress import Progress, silent
from ggrun.engine.hosts import HostLost, hops
from ggrun.errors import GgrunError, UsageError
from ggrun.plan import Plan
from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc.at_once import each
from ggrun.rpc.channel import AGAIN, TIMEOUT, Certificates, is_loopback, split_address
from ggrun.rpc.keys import Key, known_worker, known_workers
from ggrun.rpc.link import Link
from ggrun.rpc.remote import Remote
from ggrun.rpc.wire import FORMS

log = logging.getLogger(__name__)
_SLACK = 0.5
"""Seconds more than a connection's own, after which whatever holds it up (as a name server does) is left."""
Keys = Mapping[str, Key | None]
"""Workers by their addresses, and what is known of each; None: plain text."""


class Workers:
    """Connections to workers. `hosts` are what an Engine takes, by their addresses; so are `keys`."""

    def __init__(self, keys: Keys, remotes: Sequence[Remote]) -> None:
        self.keys, self.hosts = keys, {remote.name: remote for remote in remotes}

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
    tell: Callable[[str], None] = log.warning,
) -> Workers:
    """Connect to workers: "host:port,host:port", or "auto".

    HostLost when one that is named cannot be used, GgrunError or UsageError when something here cannot.
    Of those that are found, whoever cannot be used is left out.

    insecure       1: plain text to this machine's own, 2: to any
    form           of activations on the wire: f32, f16 or bf16
    certificate    files of one and its private key, for workers that want one
    tell           is told, in a line each, who is left out
    """
    if form not in FORMS:
        raise UsageError(f"activations of form {form!r:.20}: there are {', '.join(FORMS)}")
    found = addresses.strip() == "auto"
    keys = _found() if found else _named(addresses, insecure)
    own = Certificates.read(*certificate) if certificate else None
    workers, lost = _reach(keys, own, form, progress, TIMEOUT)
    if lost and not found:
        workers.close()
        raise lost[0]
    for error in lost:
        tell(f"{error}: going on without it")
    return workers


def reconnect(
    keys: Keys, *, form: str, certificate: tuple[str, str] | None, progress: Progress
) -> tuple[Workers, list[HostLost]]:
    """Connect to workers that were reached before, as far as they can be used now; and why others cannot."""
    try:
        own = Certificates.read(*certificate) if certificate and keys else None
    except GgrunError as error:
        return Workers({}, ()), [HostLost(name, str(error)) for name in keys]
    return _reach(keys, own, form, progress, AGAIN)


def _reach(
    keys: Keys, own: Certificates | None, form: str, progress: Progress, seconds: float
) -> tuple[Workers, list[HostLost]]:
    """Connect to all at the same time."""
    calls = [partial(Link, name, key, own, seconds) for name, key in keys.items()]
    links = each(calls, seconds + _SLACK, Link.close)
    remotes: list[Remote] = []
    lost: list[HostLost] = []
    try:
        for name, link in zip(keys, links, strict=True):
            try:
                # One after the other: each is measured.
                remotes.append(Remote(_linked(link), FORMS[form], progress))
            except GgrunError as error:
                # Whatever the reason is: others may go on without it.
                lost.append(HostLost(name, str(error).removeprefix(f"{name}: ")))
                _close([link])
    except BaseException:
        _close(links)
        raise
    return Workers({remote.name: keys[remote.name] for remote in remotes}, remotes), lost


def _linked(link: Link | BaseException) -> Link:
    if isinstance(link, TimeoutError):
        raise GgrunError("cannot be reached: it does not answer")
    if isinstance(link, BaseException):
        raise link
    return link


def _close(links: Iterable[Link | BaseException]) -> None:
    for link in links:
        if isinstance(link, Link):
            link.close()


def _named(addresses: str, insecure: int) -> dict[str, Key | None]:
    """The workers of a list."""
    names = dict.fromkeys(name for part in addresses.split(",") if (name := part.strip()))
    if not names:
        raise UsageError(f"--rpc {addresses!r:.60}: no worker is named: give host:port,host:port or auto")
    return {name: _key(name, insecure) for name in names}


def _found() -> dict[str, Key]:
    """Those of this network that were joined."""
    from ggrun.rpc.discovery import discovered

    found = discovered(known_workers())
    if not found:
        raise GgrunError("--rpc auto: no worker that was joined is found in this network")
    return found


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

"""Workers in this network, found by mDNS: who has joined one need not know its address."""

import base64
import ipaddress
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psutil

from ggrun.errors import GgrunError
from ggrun.rpc import PROTOCOL
from ggrun.rpc.at_once import each, first
from ggrun.rpc.channel import check_answer, is_loopback, joined_address
from ggrun.rpc.keys import Key

_TYPE = "_ggrun._tcp.local."
_WAIT = 2.0
"""Seconds that workers have to answer."""
_ANSWER = 3.0
"""Seconds that they have to say where they are, and one with several addresses to answer at any of them."""
_MOST_NAMES, _MOST_ADDRESSES, _MOST_WORKERS = 1024, 16, 64
"""More are not tried: anybody can announce them."""
_FINGERPRINT, _PROTOCOL = "fingerprint", "protocol"


class Announcement:
    """Says in the network that there is a worker, until it is closed. Its token is not said."""

    def __init__(self, host: str, port: int, fingerprint: bytes, interfaces: Any = None) -> None:
        from zeroconf import InterfaceChoice, ServiceInfo, Zeroconf

        name = f"{socket.gethostname().partition('.')[0]}-{port}"
        self._info = ServiceInfo(
            _TYPE,
            f"{name}.{_TYPE}",
            port=port,
            parsed_addresses=_addresses(host),
            properties={_FINGERPRINT: base64.b64encode(fingerprint), _PROTOCOL: str(PROTOCOL)},
        )
        try:
            self._zeroconf = Zeroconf(interfaces or InterfaceChoice.All)
            self._zeroconf.register_service(self._info, allow_name_change=True)
        except Exception as error:  # of many kinds, where there is no network
            raise GgrunError(f"cannot announce this worker in the network: {error}") from None

    def close(self) -> None:
        """Say that it is gone."""
        with suppress(Exception):  # the network may be gone too
            self._zeroconf.unregister_service(self._info)
        self._zeroconf.close()


def discovered(known: Mapping[str, Key], seconds: float = _WAIT, interfaces: Any = None) -> dict[str, Key]:
    """The addresses of those workers in this network whose keys are known. GgrunError without a network."""
    from zeroconf import InterfaceChoice, ServiceBrowser, ServiceListener, Zeroconf

    names: dict[str, None] = {}

    class Listener(ServiceListener):
        def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            if len(names) < _MOST_NAMES:
                names[name] = None

        update_service = add_service

        def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            names.pop(name, None)

    try:
        zeroconf = Zeroconf(interfaces or InterfaceChoice.All)
    except OSError as error:
        raise GgrunError(f"--rpc auto: no network to look into: {error.strerror}") from None
    try:
        ServiceBrowser(zeroconf, _TYPE, Listener())
        time.sleep(seconds)
        infos = _resolved(zeroconf, list(names))
    finally:
        zeroconf.close()
    keys = {key.fingerprint: key for key in known.values()}
    found = [joined for info in infos if (joined := _joined(info, keys))][:_MOST_WORKERS]
    calls = [partial(_answering, addresses, key) for addresses, key in found]
    best = each(calls, _ANSWER + 1, lambda _: None)
    return {
        address if isinstance(address, str) else addresses[0]: key
        for (addresses, key), address in zip(found, best, strict=True)
    }


def _resolved(zeroconf: Any, names: Sequence[str]) -> list[Any]:
    """What they say of themselves. Most did so with their names; some of the others are asked, together."""
    from zeroconf import BadTypeInNameException, ServiceInfo

    infos = []
    for name in names:
        with suppress(BadTypeInNameException):
            infos.append(ServiceInfo(_TYPE, name))
    silent = [info for info in infos if not info.load_from_cache(zeroconf)][:_MOST_WORKERS]
    calls = [partial(info.request, zeroconf, 1000 * _ANSWER) for info in silent]
    each(calls, _ANSWER + 1, lambda _: None)
    return infos


def _joined(info: Any, keys: Mapping[bytes, Key]) -> tuple[Sequence[str], Key] | None:
    """The addresses of a worker that was joined. Anybody may have said so: its certificate will tell."""
    try:
        fingerprint = base64.b64decode(info.properties.get(_FINGERPRINT.encode()) or b"")
    except ValueError:
        return None
    addresses = sorted(info.parsed_addresses(), key=lambda a: ipaddress.ip_address(a).version)
    key = keys.get(fingerprint)
    if key is None or not addresses or not info.port:
        return None
    return [joined_address(address, info.port) for address in addresses[:_MOST_ADDRESSES]], key


def _answering(addresses: Sequence[str], key: Key) -> str:
    """The one at which the worker answers first: it may be in nets (as Docker's) that this machine is not."""
    if len(addresses) == 1:
        return addresses[0]

    def answering(address: str) -> str:
        check_answer(address, key.fingerprint, _ANSWER)
        return address

    return first([partial(answering, address) for address in addresses], _ANSWER, lambda _: None)


def _addresses(host: str) -> list[str]:
    """What a worker that listens at a host can be reached by."""
    if host not in ("0.0.0.0", "::"):
        return [str(socket.getaddrinfo(host, None)[0][4][0])]
    every = (a for addresses in psutil.net_if_addrs().values() for a in addresses)
    found = [a.address for a in every if a.family == socket.AF_INET and not is_loopback(a.address)]
    return found or ["127.0.0.1"]

"""mDNS: a worker is found by its fingerprint, and only by who has joined it."""

from collections.abc import Iterator

import pytest

from ggrun.errors import GgrunError
from ggrun.rpc import workers
from ggrun.rpc.discovery import Announcement, discovered
from ggrun.rpc.keys import Key
from ggrun.rpc.workers import connect

KEY, OTHER = Key(bytes(32), bytes(range(32))), Key(bytes(32), bytes(range(1, 33)))
HERE = ["127.0.0.1"]


@pytest.fixture
def announced() -> Iterator[None]:
    try:
        announcement = Announcement("127.0.0.1", 50999, KEY.fingerprint, HERE)
    except GgrunError as error:
        pytest.skip(f"no multicast here: {error}")
    if not discovered({"x": KEY}, 1.0, HERE):
        announcement.close()
        pytest.skip("no multicast on this machine's loopback")
    yield
    announcement.close()


@pytest.mark.usefixtures("announced")
def test_a_worker_is_found_by_who_has_joined_it() -> None:
    assert discovered({"old.example:1": KEY, "b:2": OTHER}, 1.0, HERE) == {"127.0.0.1:50999": KEY}
    assert discovered({"b:2": OTHER}, 1.0, HERE) == {}


def test_auto_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "known_workers", dict)
    with pytest.raises(GgrunError, match=r"^--rpc auto: no (worker that was joined|network)"):
        connect("auto")

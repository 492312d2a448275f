"""Inputs of batches that follow each other: each batch has its own, and the host is not far ahead."""

import numpy as np
import pytest

from ggrun.devices.base import Limits
from ggrun.devices.cuda.feed import _AHEAD, Feed
from ggrun.devices.late import LateEvent, Schedule
from tools.cuda_emulator.driver import EmulatedDriver

BATCHES = 3 * _AHEAD
SEEDS = range(5)


class Fed:
    """A card that keeps what the first token of each batch was."""

    def __init__(self, seed: int = 0) -> None:
        self.driver = EmulatedDriver(schedule=Schedule(seed))
        self.feed = Feed(self.driver, Limits(2, 1, 1, 1))
        self._memory = self.driver.allocate(self.feed.nbytes)
        self.seen: list[int] = []

    def run(self, token: int) -> None:
        """Enqueue a batch."""
        inputs, words = self.feed.next(), np.empty(self.feed.nbytes // 4, np.int32)
        inputs.tokens[:] = token
        self.feed.send(self._memory.address)
        self.driver.download(words, self._memory.address)
        self.driver.stream.enqueue(lambda: self.seen.append(int(words[self.feed.offsets["tokens"]])))

    def all(self) -> list[int]:
        """What the batches had."""
        for token in range(BATCHES):
            self.run(token)
        self.driver.stream.synchronize()
        return self.seen


@pytest.mark.parametrize("seed", SEEDS)
def test_each_batch_has_its_own(seed: int) -> None:
    fed = Fed(seed)
    assert fed.all() == list(range(BATCHES))
    assert fed.all()[BATCHES:] == list(range(BATCHES))


def test_the_wait_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LateEvent, "block", lambda self: None)
    assert Fed().all() != list(range(BATCHES))


def test_only_so_many_batches_are_under_way() -> None:
    """The host does not wait before, and then for the oldest one alone."""
    fed = Fed()
    for token in range(BATCHES):
        fed.run(token)
        assert len(fed.seen) == max(0, token + 1 - _AHEAD)


def test_where_the_host_has_waited_there_are_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed()
    monkeypatch.setattr(fed.driver.stream, "record", lambda: pytest.fail("an event"))
    for token in range(BATCHES):
        fed.run(token)
        fed.driver.stream.synchronize()
    assert fed.seen == list(range(BATCHES))


def test_after_batches_that_were_given_up() -> None:
    """By an error, or because a batch was never written."""
    fed = Fed()
    for token in range(_AHEAD + 1):
        fed.run(token)
        fed.feed.next()
    fed.driver.stream.abandon()
    fed.seen.clear()
    assert fed.all() == list(range(BATCHES))

"""Inputs of the batches that are under way, in pinned memory of the host, from where the card copies them."""

import ctypes
from collections import deque

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Inputs, Limits
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.streams import Event

_AHEAD = 4
"""Batches that are under way at most: so soon a stream ends that was interrupted."""


class _Turn:
    """One batch's. sent: the stream's ticket behind the copy; behind: an event behind the batch."""

    def __init__(self, driver: Driver, limits: Limits) -> None:
        self._driver = driver
        self.inputs = Inputs(limits, self._words)
        self.sent = 0
        self.behind: Event | None = None

    @property
    def address(self) -> int:
        """Where the words lie."""
        return self._memory.address

    def _words(self, n: int) -> NDArray[np.int32]:
        self._memory = self._driver.allocate_on_host(4 * n)
        words = np.ctypeslib.as_array((ctypes.c_int32 * n).from_address(self._memory.address))
        words[:] = 0
        return words


class Feed:
    """Inputs that take turns: each is written again when the card has done its batch.

    Where the host has waited for the stream since, as it does for each token, no event has to tell that.
    """

    def __init__(self, driver: Driver, limits: Limits) -> None:
        self._driver = driver
        self._turns = deque(_Turn(driver, limits) for _ in range(_AHEAD))
        inputs = self._turns[0].inputs
        self.offsets, self.nbytes = inputs.offsets, inputs.words.nbytes

    def next(self) -> Inputs:
        """What the next batch may be written to. Waits for the oldest one, if all are under way."""
        stream, last = self._driver.stream, self._turns[-1]
        if last.sent > stream.rested:
            last.behind = stream.record()
        self._turns.rotate(-1)
        turn = self._turns[-1]
        if turn.behind and turn.sent > stream.rested:
            turn.behind.block()
        turn.behind = None
        return turn.inputs

    def send(self, address: int) -> None:
        """Enqueue the copy of what `next` gave to the card."""
        turn = self._turns[-1]
        self._driver.copy(address, turn.address, turn.inputs.words.nbytes)
        turn.sent = self._driver.stream.ticket()

"""Small downloads by way of pinned memory: the call that enqueues one returns at once.

To memory that is not pinned, the host would wait in the call until the card has come there. So a card writes
to a kept place, and the numbers go on to where they are wanted when the host has waited for the stream.
"""

from collections import deque
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.cuda.card_errors import CardErrors

_ROOM = 256 << 10
"""Bytes: the best logits of many batches, or all of 64k words. A second copy of more would take its time."""
_ALIGNMENT = 64


class _Coming(NamedTuple):
    """A download: its number, the caller's array, and where the card writes, if that is not the array."""

    number: int
    data: NDArray[Any]
    here: NDArray[Any] | None


class Downloads:
    """Those of one stream, in its order. Arrays are kept alive until their numbers are there.

    begun    how many there have been
    """

    def __init__(self, errors: CardErrors) -> None:
        self._errors, self._lock = errors, Lock()
        self._coming: deque[_Coming] = deque()
        self._taken, self.begun = 0, 0  # of the room

    def begin(self, data: NDArray[Any]) -> NDArray[Any] | None:
        """Where the card has to write what data is to have, contiguous; None: to data itself.

        By who gives the stream work, one thread at a time. Without the lock: what is made here may have
        garbage collected, whose memory the driver frees when it has waited for the card, and the card's
        stream for host's work that wants the lock.
        """
        if not self._coming:  # all have landed
            self._taken = 0
        here, free = None, self._room[self._taken :]
        if data.nbytes <= len(free):
            here = free[: data.nbytes].view(data.dtype).reshape(data.shape)
            self._taken += -(-data.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.begun += 1
        self._coming.append(_Coming(self.begun, data, here))
        return here

    def land(self, until: int) -> None:
        """The card has done the first `until` of all: put their numbers where they are wanted.

        From any thread: who comes while another one does it waits for that.
        """
        with self._lock:
            while self._coming and self._coming[0].number <= until:
                _, data, here = self._coming[0]
                if here is not None:
                    np.copyto(data, here)
                self._coming.popleft()  # now: if an interrupt came before, it is done again

    @cached_property
    def _room(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._errors.pinned(_ROOM), np.uint8, _ROOM)

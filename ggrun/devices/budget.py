"""How much of a device's memory is taken, where the device has a limit."""

from typing import Any
from weakref import finalize

from ggrun.errors import GgrunError


class Budget:
    """Counts what owners take, until they are dropped."""

    def __init__(self, device: str, limit: int | None) -> None:
        self.device, self.limit, self.used = device, limit, 0

    @property
    def free(self) -> int | None:
        """Bytes that can be taken; None without a limit."""
        return None if self.limit is None else self.limit - self.used

    def take(self, owner: Any, nbytes: int, what: str) -> None:
        """Count what an object takes for as long as it lives; GgrunError when there is not so much."""
        self.check(nbytes, what)
        self.used += nbytes
        finalize(owner, self._give, nbytes).atexit = False

    def check(self, nbytes: int, what: str) -> None:
        """GgrunError when there is not so much."""
        if self.limit is not None and nbytes > self.limit - self.used:
            raise GgrunError(
                f"{self.device}: no memory for {what}: {nbytes} bytes, "
                f"{self.limit - self.used} of {self.limit} are free"
            )

    def _give(self, nbytes: int) -> None:
        self.used -= nbytes

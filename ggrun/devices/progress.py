"""How far long work has come, for whoever shows it."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Is told what is done, how many bytes of it, and of how many."""


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""


class Uploads:
    """Counts the weights that come to cards. Before `begin` and after `end` nothing is told."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = self._total = 0

    def begin(self, total: int) -> None:
        """So many bytes will come."""
        self._done, self._total = 0, total

    def __call__(self, nbytes: int) -> None:
        """More have come."""
        self._done += nbytes
        if self._total:
            self._progress("loading", min(self._done, self._total - 1), self._total)

    def end(self) -> None:
        """All have come: the plan counts a little more than there is."""
        if self._done:
            self._progress("loading", self._total, self._total)
        self._total = 0

"""Texts of strangers cannot steer a terminal; errors that become others keep nothing of what failed."""

import gc
from weakref import ref

import pytest

from ggrun.errors import GgrunError, Retold, escaped


def test_names_stay_what_they_are() -> None:
    assert escaped("büro\n\x1b[2J\udcff\u202e") == r"büro\n\x1b[2J\udcff\u202e"


class Held:
    """What a frame has that fails."""


def test_an_error_that_becomes_another() -> None:
    """What failed is let go of with the error, by counting references alone."""

    def fails() -> None:
        held = Held()
        left.append(ref(held))
        raise OSError("full")

    left: list[ref[Held]] = []
    gc.disable()
    try:
        with (
            pytest.raises(GgrunError, match=r"^a disk: full$") as told,
            Retold(OSError, lambda error: GgrunError(f"a disk: {error}")),
        ):
            fails()
        assert told.value.__suppress_context__
        del told
        assert left[0]() is None
    finally:
        gc.enable()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), Retold(OSError, lambda error: GgrunError(str(error))):
        raise KeyError

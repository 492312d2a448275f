"""Texts of strangers: they cannot steer a terminal."""

from ggrun.errors import escaped


def test_names_stay_what_they_are() -> None:
    assert escaped("büro\n\x1b[2J\udcff\u202e") == r"büro\n\x1b[2J\udcff\u202e"

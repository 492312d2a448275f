"""What was found out: for this process in any case, for the next where it can be written."""

from pathlib import Path

import pytest

from ggrun.devices.kept import Kept


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGRUN_CACHE", str(tmp_path))
    return tmp_path / "hardware"


def numbers() -> Kept[int]:
    """As a process that begins has them."""
    return Kept("number", int)


def test_the_next_process_knows(folder: Path) -> None:
    kept = numbers()
    assert kept.get("a") is None
    kept.put("a", 1, "1")
    kept.put("b", 2, "2", settled=False)
    assert (kept.get("a"), kept.get("b")) == (1, 2)
    assert (numbers().get("a"), numbers().get("b")) == (1, None)
    kept.put("a", 3, "3", settled=False)
    assert (kept.get("a"), numbers().get("a")) == (3, None)


def test_keys_are_any_text(folder: Path) -> None:
    numbers().put("../of a card/\0", 1, "1")
    assert [file.name for file in folder.iterdir()] == ["number-.._of_a_card__.json"]
    assert numbers().get("../of a card/\0") == 1


@pytest.mark.parametrize("stays", [False, True])
def test_forgotten(stays: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers().put("a", 1, "1")
    kept = numbers()
    assert kept.get("a") == 1
    if stays:

        def refused(path: Path, missing_ok: bool = False) -> None:
            raise PermissionError

        monkeypatch.setattr(Path, "unlink", refused)
    kept.forget("a")
    assert kept.get("a") is None
    assert numbers().get("a") == (1 if stays else None)
    kept.put("a", 2, "2")
    assert kept.get("a") == numbers().get("a") == 2


def test_what_nobody_wrote(folder: Path) -> None:
    numbers().put("a", 1, "1")
    (file,) = folder.iterdir()
    file.write_bytes(b"\xff\xfe")
    assert numbers().get("a") is None
    file.unlink()
    file.mkdir()
    kept = numbers()
    assert kept.get("a") is None
    kept.put("a", 2, "2")
    assert (kept.get("a"), numbers().get("a")) == (2, None)

"""A worker's secrets on its disk, and the key that clients are told."""

import os
from pathlib import Path

import pytest

from ggrun.errors import GgrunError, UsageError
from ggrun.rpc import keys


@pytest.mark.parametrize("line", ["", "abc", "a.b", "a.b.c", "\u1234.\u1234", "A" * 43 + "." + "A" * 42])
def test_no_key(line: str) -> None:
    with pytest.raises(UsageError, match="that is no key of a worker"):
        keys.Key.parse(line)


def test_keys_survive_the_way_through_text(tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    made = keys.identity(folder)
    assert keys.Key.parse(str(made.key)) == made.key
    assert keys.identity(folder) == made
    (folder / "certificate.pem").unlink()
    other = keys.identity(folder)
    assert (other.token, other.key.fingerprint == made.key.fingerprint) == (made.token, False)


def test_no_key_begins_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ggrun join` would not take the line that was printed."""
    drawn = iter([b"\xf8" * 32, b"\xfb" * 32, b"\1" * 32])
    monkeypatch.setattr(keys.secrets, "token_bytes", lambda n: next(drawn))
    assert keys.identity(tmp_path).token == b"\1" * 32


def test_a_key_is_to_be_shown_until_it_was(tmp_path: Path) -> None:
    """And again when it is another: the fingerprint is in the join line, as the token is."""
    made = keys.identity(tmp_path)
    assert not keys.was_shown(tmp_path, made.key)
    keys.mark_shown(tmp_path, made.key)
    assert keys.was_shown(tmp_path, keys.identity(tmp_path).key)
    assert str(made.key).partition(".")[0] not in (tmp_path / "shown").read_text()
    assert not keys.was_shown(tmp_path, keys.identity(tmp_path, new_token=True).key)
    (tmp_path / "private_key.pem").unlink()
    assert not keys.was_shown(tmp_path, keys.identity(tmp_path).key)


def test_secrets_go_into_new_files(tmp_path: Path) -> None:
    """Not into one, or by way of a link, that somebody has put where they are written."""
    other = tmp_path / "other"
    other.write_text("another's")
    folder = tmp_path / "worker"
    folder.mkdir()
    for name in ("private_key.pem", "certificate.pem", "token"):
        (folder / f".{name}.{os.getpid()}").symlink_to(other)
    made = keys.identity(folder)
    assert keys.identity(folder) == made
    assert other.read_text() == "another's"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if not path.is_symlink()} == {0o600}


@pytest.mark.parametrize("name", ["certificate.pem", "private_key.pem", "token"])
def test_a_damaged_secret_is_named(name: str, tmp_path: Path) -> None:
    """One that is half there, is none, or is another's."""
    keys.identity(tmp_path / "other")
    for wrong in (b"", b"\xff", (tmp_path / "other" / name).read_bytes()[:-30]):
        keys.identity(folder := tmp_path / "worker")
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(wrong)
        with pytest.raises(GgrunError, match=rf"^{folder / name}: damaged.*: remove it, and join again$"):
            keys.identity(folder)
        (folder / name).write_bytes(before)
    (folder / "private_key.pem").write_bytes((tmp_path / "other" / "private_key.pem").read_bytes())
    with pytest.raises(GgrunError, match=r"private_key.pem: damaged, or not that of certificate.pem"):
        keys.identity(folder)


def test_a_folder_that_is_not_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets that are there are enough; without them, nothing can begin."""
    made = keys.identity(tmp_path / "mine")
    monkeypatch.setattr(keys.os, "access", lambda folder, mode: False)
    keys.check_secrets(tmp_path / "mine")
    assert keys.identity(tmp_path / "mine") == made
    why = f"^{tmp_path / 'none'}: Permission denied: GGRUN_CONFIG names another folder for keys$"
    with pytest.raises(GgrunError, match=why):
        keys.check_secrets(tmp_path / "none")

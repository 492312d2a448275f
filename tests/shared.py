"""Reference material from outside the project: found by GGRUN_PEER, or beside the checkout, or skipped."""

import os
from pathlib import Path

import pytest

_PEER = Path(os.environ.get("GGRUN_PEER") or Path(__file__).resolve().parents[2] / "shared" / "peer")


def peer() -> Path:
    """Return the folder of llama.cpp's reference results (`archs/` and `quants/`), or skip the test."""
    return _folder(_PEER)


def vocab() -> Path:
    """Return the folder of llama.cpp's vocabularies and their expected tokens, or skip the test."""
    return _folder(_PEER.parent / "vocab")


def templates() -> Path:
    """Return the folder of chat templates, or skip the test."""
    return _folder(_PEER.parent / "templates")


def corpus() -> Path:
    """Return the folder of plain text, or skip the test."""
    return _folder(_PEER.parent / "corpus")


def _folder(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f"no reference material at {path}: set GGRUN_PEER to its 'peer' folder")
    return path

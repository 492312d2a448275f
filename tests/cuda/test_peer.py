"""The peer's models on an emulated CUDA device, by the bars of the CPU."""

import pytest

from ggrun.devices.cuda.gemm import GemmFrom
from tests.cuda.models import cards, engine, logits
from tests.engine.test_peer import ARCHS, QUANTS, distance, reference
from tests.shared import peer
from tests.thinned import diagonal

pytestmark = pytest.mark.cuda

BY_CUBLAS = GemmFrom(9, 9, 9)


@pytest.mark.parametrize("name", ARCHS)
def test_architectures(name: str) -> None:
    check(name, 1000)


@pytest.mark.parametrize(("size", "name"), diagonal((7, 1), ARCHS))
def test_architectures_in_small_batches(size: int, name: str) -> None:
    check(name, size)


def check(name: str, size: int) -> None:
    path = peer() / "archs" / f"{name}.gguf"
    want = reference(path)
    got = logits(engine(path, cards(1)), want["tokens"].tolist(), size)
    assert distance(got, want["logits"]) <= 1e-6


@pytest.mark.parametrize(("arch", "name"), diagonal((75, 80), QUANTS))
def test_formats(arch: int, name: str) -> None:
    path = peer() / "quants" / f"{name}.gguf"
    want = reference(path)
    got = logits(engine(path, cards(1, arch)), want["tokens"].tolist())
    assert distance(got, want["exact"]) <= 1.1 * distance(want["logits"], want["exact"])


@pytest.mark.parametrize("name", ARCHS)
def test_architectures_by_cublas(name: str) -> None:
    path = peer() / "archs" / f"{name}.gguf"
    want = reference(path)
    got = logits(engine(path, cards(1, gemm_from=BY_CUBLAS)), want["tokens"].tolist())
    assert distance(got, want["logits"]) <= 1e-6


@pytest.mark.parametrize("name", QUANTS)
def test_formats_by_cublas(name: str) -> None:
    """Activations have more bits than llama.cpp's."""
    path = peer() / "quants" / f"{name}.gguf"
    want = reference(path)
    got = logits(engine(path, cards(1, gemm_from=BY_CUBLAS)), want["tokens"].tolist())
    assert distance(got, want["exact"]) <= 0.2 * distance(want["logits"], want["exact"])

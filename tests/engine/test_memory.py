"""Memory: what the KV cache may take, the context that fits, and the logits of one run."""

import gc
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from ggrun import LLM, GgrunError
from ggrun.arch.config import Config
from ggrun.devices import cpu_memory
from ggrun.engine import engine as engine_module
from ggrun.engine.batch import Batch
from ggrun.engine.outputs import Scores
from ggrun.engine.runner import CacheSpec, check_memory
from ggrun.gguf import GGUF
from ggrun.plan import Member, Plan, Stage, single
from ggrun.plan.facts import ModelFacts
from ggrun.plan.report import DoesNotFit
from ggrun.plan.usage import Sizes, plan_use
from tests.engine.test_peer import distance
from tests.tiny import Tiny

PAGE = 64
MODEL = Tiny(layers=3, heads=6, kv_heads=3, key_dim=20, value_dim=12, context=1 << 20)


@dataclass
class Fake:
    """A device that has so many bytes, and a cache row of as many as it likes."""

    free: int

    def available(self) -> int:
        return self.free

    def row_bytes(self, kind: str, dim: int) -> int:
        return {"f16": 2, "f32": 4, "q8_0": 1}[kind] * dim + 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return MODEL.write(tmp_path / "model.gguf")


@pytest.fixture
def config(path: Path) -> Config:
    return Config.from_gguf(GGUF(path))


def have(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Let the system say that so many bytes are free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=nbytes, total=nbytes))


POSITION = 64 * 2 * 3 * 3  # bytes of a position: rows of 32 values in f16, heads and layers
MARGIN = 1 << 30


def needed(path: Path, n_ctx: int) -> int:
    """The bytes that must be free for a context."""
    facts = ModelFacts.from_outline(GGUF(path))
    return plan_use(facts, single(facts.config, "cpu"), Sizes(n_ctx), 0)["cpu"].total + MARGIN


# ---------------------------------------------------------------- the KV cache must fit


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        (CacheSpec(5, "f16", "f16"), 2 * 20 + 3 + 2 * 12 + 3),
        (CacheSpec(5, "f32", "q8_0"), 4 * 20 + 3 + 12 + 3),
        (CacheSpec(1, "q8_0", "f32"), 20 + 3 + 4 * 12 + 3),
    ],
)
def test_exactly_enough_is_enough(spec: CacheSpec, row: int, config: Config) -> None:
    plan, needed = single(config, "gpu"), 3 * 3 * spec.pages * PAGE * row
    check_memory(plan, {"gpu": Fake(needed)}, config, spec)
    with pytest.raises(GgrunError, match=rf"^gpu: .* {spec.pages * PAGE} positions .* -c\b") as caught:
        check_memory(plan, {"gpu": Fake(needed - 1)}, config, spec)
    assert "\n" not in str(caught.value)


def test_the_message_has_the_sizes(config: Config) -> None:
    spec = CacheSpec(-(-(3 << 30) // (3 * 3 * PAGE * 70)), "f16", "f16")
    with pytest.raises(GgrunError, match=r"takes 3\.0 GiB, 1\.5 GiB are free.*-c, or -ctk q8_0 -ctv q8_0"):
        check_memory(single(config, "cpu"), {"cpu": Fake(3 << 29)}, config, spec)


def test_each_device_has_room_for_its_own_part(config: Config) -> None:
    """Attention halves count, feed-forward halves do not; of the heads, those that a member owns."""
    a = Member("a", (0, 6), (0, 3), (0, 96))
    b, c = Member("b", (0, 4), (0, 2), (0, 96)), Member("c", (4, 6), (2, 3), (0, 96))
    plan = Plan((Stage((0, 1), (a,)), Stage((1, 2), (b, c)), Stage((2, 3), (b, c)), Stage((3, 6), (a,))))
    spec = CacheSpec(2, "f16", "f16")
    layer = 2 * PAGE * (2 * 20 + 3 + 2 * 12 + 3)  # of one head
    needed = {"a": 2 * 3 * layer, "b": 2 * layer, "c": layer}
    check_memory(plan, {name: Fake(n) for name, n in needed.items()}, config, spec)
    for short in needed:
        devices = {name: Fake(n - (name == short)) for name, n in needed.items()}
        with pytest.raises(GgrunError, match=f"^{short}: "):
            check_memory(plan, devices, config, spec)


def test_a_model_is_refused_before_it_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, cells, buffers and the margin all count; without fitting only the cells do."""
    loaded: list[object] = []
    monkeypatch.setattr(engine_module, "Pipeline", lambda *args: loaded.append(args))
    have(monkeypatch, needed(path, 2048) - 1)
    with pytest.raises(DoesNotFit, match=r"^\S*model\.gguf: does not fit: cpu needs .* give -ctk q8_0"):
        LLM(path, n_ctx=2048)
    have(monkeypatch, 2048 * POSITION - 1)
    with pytest.raises(GgrunError, match=r" -c\b"):
        LLM(path, n_ctx=2048, fit=False)
    assert loaded == []
    have(monkeypatch, 2048 * POSITION)
    LLM(path, n_ctx=2048, fit=False).close()
    have(monkeypatch, needed(path, 2048))
    LLM(path, n_ctx=2048).close()
    assert len(loaded) == 2


def test_no_memory_for_a_recording(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, whatever buffer it is that there is no memory for; and nothing on stderr from its end."""
    unraisable: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)

    class Full:
        uint8 = np.uint8

        @staticmethod
        def zeros(nbytes: int, dtype: type) -> np.ndarray:
            if nbytes > 1 << 15:
                raise MemoryError
            return np.zeros(nbytes, dtype)

    monkeypatch.setattr(cpu_memory, "np", Full)
    with pytest.raises(GgrunError, match="no memory for"):
        LLM(path, n_ctx=64)
    gc.collect()
    assert unraisable == []


# ---------------------------------------------------------------- the context that fits


@pytest.mark.parametrize(("n_ctx", "less"), [(6400, 0), (6400, 1), (4096, 0), (4160, 0)])
def test_the_context_takes_the_memory_that_there_is(
    n_ctx: int, less: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whole pages."""
    have(monkeypatch, needed(path, n_ctx) - less)
    with LLM(path) as llm:
        assert llm.n_ctx == n_ctx - PAGE * less
    have(monkeypatch, needed(path, n_ctx) - less - MARGIN)
    with LLM(path, fit_margin=0) as llm:
        assert llm.n_ctx == n_ctx - PAGE * less


def test_smaller_cells_make_a_larger_context(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, needed(path, 6400))
    for kinds, row in ((("q8_0", "q8_0"), 34 + 34), (("f16", "q8_0"), 64 + 34), (("f16", "f16"), 128)):
        with LLM(path, cache_type_k=kinds[0], cache_type_v=kinds[1]) as llm:
            want = 6400 * POSITION // (row * 3 * 3)
            assert abs(llm.n_ctx - want) <= PAGE, kinds


def test_no_more_than_the_model_was_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 1 << 40)
    for context in (40, 5000):
        with LLM(Tiny(context=context).write(tmp_path / "model.gguf")) as llm:
            assert llm.n_ctx == context


def test_even_the_least_may_not_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free in (needed(path, 4096) - 1, 1000, 0):
        have(monkeypatch, free)
        with pytest.raises(DoesNotFit, match="does not fit: cpu needs"):
            LLM(path)


# ---------------------------------------------------------------- the logits of one run


@pytest.mark.parametrize(("rows", "most"), [(3, 3), (3.99, 3), (1, 1), (0.5, 1), (1000, 12)])
def test_logits_are_cut(rows: float, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run computes more logits than there may be, and the cuts do not change them."""
    model = Tiny(vocab=333).write(tmp_path / "model.gguf")
    ids = np.random.default_rng(1).integers(0, 333, 40).tolist()
    with LLM(model, cache_type_k="f32", cache_type_v="f32") as llm:
        want = llm.logits(ids)
    monkeypatch.setattr(engine_module, "_LOGITS_BYTES", int(rows * 4 * 333))
    with LLM(model, n_ubatch=12, cache_type_k="f32", cache_type_v="f32") as llm:
        pipeline, sizes = llm._engine._pipeline, []
        original = pipeline.run

        def run(batches: list[Batch]) -> list[Scores]:
            sizes.extend((len(batch.tokens), batch.wanted) for batch in batches)
            return original(batches)

        monkeypatch.setattr(pipeline, "run", run)
        assert distance(llm.logits(ids), want) < 1e-11
        assert {outputs for _, outputs in sizes} <= set(range(1, most + 1))
        assert max(outputs for _, outputs in sizes) == most
        sizes.clear()
        llm._engine.cache.truncate(0, 0)
        last = llm._engine.decode(ids)  # of a prompt only the last are wanted: it is not cut smaller for that
        assert distance(last, want[-1:]) < 1e-11
        assert max(tokens for tokens, _ in sizes) == 12

"""Memory: what the KV cache may take, the context that fits, and the logits of one run."""

import gc
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from ggrun import LLM, GgrunError, UsageError
from ggrun.devices import cpu_memory
from ggrun.engine import engine as engine_module
from ggrun.engine.batch import Batch
from ggrun.engine.outputs import Scores
from ggrun.gguf import GGUF
from ggrun.plan import single, usage
from ggrun.plan.facts import ModelFacts
from ggrun.plan.report import DoesNotFit
from ggrun.plan.usage import Sizes, plan_use
from tests.engine.test_peer import distance
from tests.tiny import Tiny

PAGE = 64
MODEL = Tiny(layers=3, heads=6, kv_heads=3, key_dim=20, value_dim=12, context=1 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return MODEL.write(tmp_path / "model.gguf")


def have(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Let the system say that so many bytes are free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=nbytes, total=nbytes))


POSITION = 64 * 2 * 3 * 3  # bytes of a position: rows of 32 values in f16, heads and layers
MARGIN = 1 << 30


def needed(path: Path, n_ctx: int) -> int:
    """The bytes that must be free for a context."""
    facts = ModelFacts.from_outline(GGUF(path))
    return plan_use(facts, single(facts.config, "cpu"), Sizes(n_ctx), 0)["cpu"].total + MARGIN


# ---------------------------------------------------------------- what does not fit


def test_a_model_is_refused_before_it_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, cells, buffers and the margin all count; without fitting nothing is refused."""
    loaded: list[object] = []
    monkeypatch.setattr(engine_module, "Pipeline", lambda *args: loaded.append(args))
    have(monkeypatch, needed(path, 2048) - 1)
    with pytest.raises(DoesNotFit, match=r"^\S*model\.gguf: does not fit: cpu needs .* give -ctk q8_0"):
        LLM(path, n_ctx=2048)
    assert loaded == []
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
    monkeypatch.setattr(usage, "LOGITS_BYTES", int(rows * 4 * 333))
    with LLM(model, n_ubatch=12, cache_type_k="f32", cache_type_v="f32") as llm:
        pipeline, sizes = llm._engine._pipeline, []
        original = pipeline.run

        def run(batches: list[Batch], logits: np.ndarray) -> list[Scores]:
            sizes.extend((len(batch.tokens), batch.wanted) for batch in batches)
            return original(batches, logits)

        monkeypatch.setattr(pipeline, "run", run)
        assert distance(llm.logits(ids), want) < 1e-11
        assert {outputs for _, outputs in sizes} <= set(range(1, most + 1))
        assert max(outputs for _, outputs in sizes) == most
        sizes.clear()
        llm._engine.cache.truncate(0, 0)
        last = llm._engine.decode(ids)  # of a prompt only the last are wanted: it is not cut smaller for that
        assert distance(last, want[-1:]) < 1e-11
        assert max(tokens for tokens, _ in sizes) == 12


def test_logits_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny(vocab=333, context=64).write(tmp_path / "model.gguf")
    ids = np.random.default_rng(1).integers(0, 333, 40).tolist()
    monkeypatch.setattr(usage, "LOGITS_BYTES", 7 * 4 * 333)
    with LLM(model, cache_type_k="f32", cache_type_v="f32") as llm:
        want = llm.logits(ids)
        pieces = list(llm.logits_by_piece(ids))
        assert [len(piece) for piece in pieces] == [7] * 5 + [5]
        assert distance(np.concatenate(pieces), want) < 1e-11
        with pytest.raises(UsageError, match="65 tokens"):
            llm.logits_by_piece([1] * 65)
        begun = llm.logits_by_piece(ids)
        next(begun)
        llm.logits([1])
        with pytest.raises(GgrunError, match="another text"):
            next(begun)


def test_more_logits_than_there_is_memory_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before anything is computed; to take them by the piece is none the worse."""
    with LLM(path, n_ctx=64) as llm:
        vocab = llm.config.vocab
        monkeypatch.setattr(usage, "LOGITS_BYTES", 8 * 4 * vocab)
        llm._engine.most_outputs = 8
        want = llm.logits([1] * 20)
        have(monkeypatch, 20 * 4 * vocab - 1)
        monkeypatch.setattr(llm._engine._pipeline, "run", None)
        with pytest.raises(GgrunError, match=rf"^the logits of 20 tokens take {80 * vocab} bytes, .* free"):
            llm.logits([1] * 20)
        monkeypatch.undo()
        have(monkeypatch, 0)
        np.testing.assert_array_equal(np.concatenate(list(llm.logits_by_piece([1] * 20))), want)
        assert llm._engine.decode([1]).shape == (1, vocab)


def test_logits_are_held_once(tmp_path: Path) -> None:
    model = Tiny(vocab=50_000, layers=1, context=512).write(tmp_path / "model.gguf")
    with LLM(model, n_ctx=512, n_ubatch=16) as llm:
        llm.logits([1])
        tracemalloc.start()
        nbytes = llm.logits([1] * 512).nbytes
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert nbytes == 512 * 4 * 50_000 < most < 1.1 * nbytes


def test_perplexity_holds_one_runs_logits(tmp_path: Path) -> None:
    model = Tiny(vocab=50_000, layers=1, context=512).write(tmp_path / "model.gguf")
    with LLM(model, n_ctx=512, n_ubatch=16) as llm:
        llm.logits([1])
        tracemalloc.start()
        list(llm.perplexity([1, 2, 3, 4] * 256, window=512, chunks=1))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 1.5 * 16 * 4 * 50_000

"""Attention over several pages of the cache, against numpy float64: long texts, pages in any order, and
batches that mix the tokens of several sequences."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ggrun.arch.config import Config
from ggrun.devices.cpu import Cpu
from ggrun.engine.batch import Batch
from ggrun.engine.cache import PAGE
from ggrun.engine.engine import Engine
from ggrun.gguf import GGUF
from ggrun.plan import single
from ggrun.plan.usage import Sizes
from tests.engine.test_peer import distance
from tests.reference import Reference
from tests.tiny import Tiny

CONTEXT = 400
LONG = 300  # tokens: four pages and a part of a fifth


@dataclass
class Sharp(Tiny):
    """Queries so large that nearly all weight is on one position, and later pages outdo earlier ones."""

    def tensors(self) -> dict[str, np.ndarray]:
        return {n: w * 20 if "attn_q.weight" in n else w for n, w in super().tensors().items()}


MODELS = {
    "groups of two": Tiny(context=CONTEXT),
    "groups of one": Tiny(context=CONTEXT, kv_heads=4),
    "one group of eight": Tiny(context=CONTEXT, heads=8, kv_heads=1),
    "two groups of three": Tiny(context=CONTEXT, width=96, heads=6, kv_heads=2),
    "odd sizes": Tiny(
        context=CONTEXT, width=60, heads=3, kv_heads=1, key_dim=14, value_dim=22, ff=70, vocab=37
    ),
    "heads of more than a padding": Tiny(context=CONTEXT, heads=2, kv_heads=1, key_dim=70, value_dim=36),
    "a group larger than a block of queries": Tiny(
        context=CONTEXT, layers=1, heads=100, kv_heads=1, key_dim=4, value_dim=2
    ),
}


def tokens(n: int, seed: int = 5) -> list[int]:
    return np.random.default_rng(seed).integers(0, 37, n).tolist()


class Dirty(Cpu):
    """A CPU whose fresh memory is full of numbers that are none, in every type of the cache."""

    def zeros(self, nbytes: int, what: str, on_host: bool = False) -> np.ndarray:
        memory = super().zeros(nbytes, what, on_host)
        memory[:] = 0xFF
        return memory


@contextmanager
def opened(
    path: Path, n_ctx: int = CONTEXT, sequences: int = 1, keys: str = "f32", values: str = "f32"
) -> Iterator[Engine]:
    """An engine on two threads, over memory that was not cleared."""
    model, device = GGUF(path), Dirty(2)
    config = Config.from_gguf(model)
    options = Sizes(n_ctx, sequences=sequences, keys=keys, values=values)
    yield Engine(model, config, single(config, "cpu"), {"cpu": device}, options)
    device.close()
    model.close()


def in_parts(engine: Engine, ids: list[int], size: int, sequence: int = 0) -> np.ndarray:
    """The logits after each token of a sequence that begins anew, `size` tokens a batch."""
    engine.cache.truncate(sequence, 0)
    parts = [engine.decode(ids[i : i + size], sequence, all_logits=True) for i in range(0, len(ids), size)]
    return np.concatenate(parts)


def mixed(engine: Engine, ids: np.ndarray, sequences: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Logits of a batch of any sequences' next tokens, in the order given."""
    positions, slots = np.zeros((2, len(ids)), np.int32)
    for sequence in np.unique(sequences).tolist():
        own, begin = sequences == sequence, engine.cache.length(sequence)
        slots[own] = engine.cache.extend(sequence, int(own.sum()))
        positions[own] = begin + np.arange(own.sum())
    tables = {s: engine.cache.table(s) for s in np.unique(sequences).tolist()}
    arrays = (ids.astype(np.int32), positions, sequences.astype(np.int32), slots)
    return engine._pipeline.run([Batch(*arrays, outputs, tables)])[0].logits


# ---------------------------------------------------------------- one sequence


@pytest.mark.parametrize("name", MODELS)
def test_long_texts(name: str, tmp_path: Path) -> None:
    path = MODELS[name].write(tmp_path / "model.gguf")
    ids = tokens(LONG)
    want = Reference(path).logits(np.array(ids))
    with opened(path) as engine:
        for size in (LONG, 100, 50, 3, 1):
            assert distance(in_parts(engine, ids, size), want) < 1e-11, size


@pytest.mark.parametrize("name", ["groups of two", "odd sizes"])
@pytest.mark.parametrize("n", [1, 3, 4, 5, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1])
def test_around_the_end_of_a_page(n: int, name: str, tmp_path: Path) -> None:
    """n tokens alone, and n more after them: a run that begins or ends at, before or after a page's end."""
    path = MODELS[name].write(tmp_path / "model.gguf")
    ids = tokens(2 * n)
    want = Reference(path).logits(np.array(ids))
    with opened(path) as engine:
        assert distance(in_parts(engine, ids, n), want) < 1e-11


def test_one_page_may_outweigh_all_others(tmp_path: Path) -> None:
    path = Sharp(context=CONTEXT).write(tmp_path / "model.gguf")
    ids = tokens(LONG)
    want = Reference(path).logits(np.array(ids))
    with opened(path) as engine:
        for size in (LONG, 3):
            assert distance(in_parts(engine, ids, size), want) < 1e-8, size


@pytest.mark.parametrize(("kind", "bar"), [("f16", 1e-6), ("bf16", 1e-4), ("q8_0", 1e-3)])
@pytest.mark.parametrize("name", ["groups of two", "odd sizes"])
def test_cache_types_over_pages(kind: str, bar: float, name: str, tmp_path: Path) -> None:
    path = MODELS[name].write(tmp_path / "model.gguf")
    ids = tokens(LONG)
    want = Reference(path).logits(np.array(ids))
    for keys, values in ((kind, kind), (kind, "f32"), ("f32", kind)):
        with opened(path, keys=keys, values=values) as engine:
            # The same cells in one batch or token by token: unpacked, or read in their own form.
            at_once, one_by_one = (in_parts(engine, ids, size) for size in (LONG, 1))
        assert distance(at_once, want) < bar, (keys, values)
        assert distance(at_once, one_by_one) < bar / 10, (keys, values)
    assert distance(at_once, want) > 1e-14


# ---------------------------------------------------------------- pages in any order


@pytest.mark.parametrize("size", [1, 3, 50, 100])
def test_sequences_take_turns(size: int, tmp_path: Path) -> None:
    path = MODELS["groups of two"].write(tmp_path / "model.gguf")
    texts = [tokens(200, seed) for seed in range(3)]
    reference = Reference(path)
    with opened(path, n_ctx=3 * 256, sequences=3) as engine:
        got: list[list[np.ndarray]] = [[], [], []]
        for i in range(0, 200, size):
            for s in (2, 0, 1):
                got[s].append(engine.decode(texts[s][i : i + size], s, all_logits=True))
        tables = [engine.cache.table(s) for s in range(3)]
    assert all((np.diff(table) != 1).any() for table in tables)
    for s in range(3):
        assert distance(np.concatenate(got[s]), reference.logits(np.array(texts[s]))) < 1e-11


@pytest.mark.parametrize("size", [1, 3, 50])
def test_pages_of_others_are_taken_over(size: int, tmp_path: Path) -> None:
    """The pages that one lets go hold its cells still, come in another order, and are in no one's way."""
    path = MODELS["odd sizes"].write(tmp_path / "model.gguf")
    first, second = tokens(6 * PAGE, 1), tokens(6 * PAGE, 2)
    reference = Reference(path)
    with opened(path, n_ctx=6 * PAGE, sequences=3) as engine:
        for s in (0, 1, 0, 1):
            engine.decode(first[:PAGE], s)
        engine.decode(first[: 2 * PAGE], 2)
        for s, length in ((1, PAGE), (2, 10), (0, 10), (1, 0)):
            engine.cache.truncate(s, length)
        got = in_parts(engine, second[:250], size, 1)
        assert sorted(engine.cache.table(1)) != list(engine.cache.table(1))
        assert distance(got, reference.logits(np.array(second[:250]))) < 1e-11
        # Those that stepped back go on as if nothing had been.
        rest = engine.decode(second[:30], 0, all_logits=True)
        want = reference.logits(np.array(first[:10] + second[:30]))
        assert distance(rest, want[10:]) < 1e-11


def test_only_what_the_table_lists_is_read(tmp_path: Path) -> None:
    """The same text in pages far apart, backwards: the same bits as in pages one after the other."""
    path = MODELS["groups of two"].write(tmp_path / "model.gguf")
    ids = tokens(LONG)
    with opened(path) as engine:
        want = {size: in_parts(engine, ids, size) for size in (LONG, 3)}
    with opened(path, n_ctx=8 * PAGE) as engine:
        for size in (LONG, 3):
            engine.cache.truncate(0, 0)
            engine.cache._free, engine.cache._fresh = [1, 2, 4, 6, 7], 8  # taken from the end
            assert np.array_equal(in_parts(engine, ids, size), want[size]), size
            assert list(engine.cache.table(0)) == [7, 6, 4, 2, 1]


# ---------------------------------------------------------------- several sequences in one batch


@pytest.mark.parametrize("name", ["groups of two", "odd sizes", "one group of eight"])
@pytest.mark.parametrize("run", [1, 2, 4, 7, 70])
def test_a_batch_of_several_sequences(run: int, name: str, tmp_path: Path) -> None:
    """Runs of `run` tokens of one sequence and then another, in batches that end anywhere."""
    path = MODELS[name].write(tmp_path / "model.gguf")
    texts = {s: np.array(tokens(n, s)) for s, n in ((0, 150), (1, 80), (2, 200))}
    order = np.concatenate([np.repeat(s, run) for _ in range(0, 200, run) for s in (2, 0, 1)])
    took = np.zeros(len(order), int)
    for s in texts:
        took[order == s] = np.arange((order == s).sum())
    order = order[[t < len(texts[s]) for s, t in zip(order.tolist(), took.tolist(), strict=True)]]
    ids = np.zeros(len(order), int)
    for s, text in texts.items():
        ids[order == s] = text
    with opened(path, n_ctx=3 * 256, sequences=3) as engine:
        parts = [slice(i, i + 61) for i in range(0, len(order), 61)]
        got = np.concatenate([mixed(engine, ids[p], order[p], np.full(len(ids[p]), True)) for p in parts])
    reference = Reference(path)
    for s, text in texts.items():
        assert distance(got[order == s], reference.logits(text)) < 1e-11, s


def test_one_token_of_each_sequence_a_batch(tmp_path: Path) -> None:
    """What a server does: prompts of their own length, then each batch has the next token of all."""
    path = MODELS["groups of two"].write(tmp_path / "model.gguf")
    prompts = {0: 130, 1: 7, 2: 63}
    texts = {s: tokens(n + 8, s) for s, n in prompts.items()}
    with opened(path, n_ctx=3 * 256, sequences=3) as engine:
        for s, n in prompts.items():
            engine.decode(texts[s][:n], s)
        got = [
            mixed(
                engine, np.array([texts[s][prompts[s] + i] for s in (1, 2, 0)]), np.array([1, 2, 0]),
                np.full(3, True),
            )
            for i in range(8)
        ]  # fmt: skip
    with opened(path) as alone:
        for row, s in enumerate((1, 2, 0)):
            want = in_parts(alone, texts[s], 1)[prompts[s] :]
            assert distance(np.array(got)[:, row], want) < 1e-12, s


def test_logits_of_some_tokens_of_a_mixed_batch(tmp_path: Path) -> None:
    path = MODELS["groups of two"].write(tmp_path / "model.gguf")
    rng = np.random.default_rng(9)
    order, ids = rng.integers(0, 3, 240), rng.integers(0, 37, 240)
    wanted = rng.random(240) < 0.2
    with opened(path, n_ctx=3 * 256, sequences=3) as engine:
        all_of_them = mixed(engine, ids, order, np.full(240, True))
        for s in range(3):
            engine.cache.truncate(s, 0)
        some = mixed(engine, ids, order, wanted)
    assert np.array_equal(some, all_of_them[wanted])
    reference = Reference(path)
    for s in range(3):
        assert distance(all_of_them[order == s], reference.logits(ids[order == s])) < 1e-11


def test_a_run_of_a_sequence_may_come_in_any_order(tmp_path: Path) -> None:
    """All cells of a batch are stored before any are read: the place in the batch means nothing."""
    path = MODELS["odd sizes"].write(tmp_path / "model.gguf")
    ids = np.array(tokens(150), np.int32)
    order = np.random.default_rng(3).permutation(150)
    with opened(path) as engine:
        slots, positions = engine.cache.extend(0, 150), np.arange(150, dtype=np.int32)
        arrays = (ids[order], positions[order], np.zeros(150, np.int32), slots[order], np.full(150, True))
        (got,) = engine._pipeline.run([Batch(*arrays, {0: engine.cache.table(0)})])
    assert distance(got.logits, Reference(path).logits(ids)[order]) < 1e-11

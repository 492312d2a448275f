"""Generation: stop strings, reuse of the cache, the end of the context."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun import LLM, GgrunError, UsageError
from ggrun.engine.generate import StopStrings
from tests.engine.test_peer import distance
from tests.tiny import Tiny

TEXT = st.text("ab\n", max_size=12)


@given(pieces=st.lists(TEXT, max_size=8), stops=st.lists(TEXT, max_size=3))
def test_stop_strings_do_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    stop = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += stop.push(piece)
        if stop.stopped:
            break
    shown += stop.flush()
    whole = "".join(pieces)
    ends = [whole.find(s) for s in stops if s and s in whole]
    assert stop.stopped == bool(ends)
    # Pieces are looked at one by one: of two stop strings that overlap, the one that is complete first wins.
    assert whole.startswith(shown)
    if ends:
        assert not any(s and s in shown for s in stops)
        assert any(s and whole[len(shown) :].startswith(s) for s in stops)
    else:
        assert shown == whole


def test_text_is_not_held_back_for_longer_than_needed() -> None:
    stop = StopStrings(["END"])
    assert [stop.push(p) for p in ("abcE", "N", "x", "EN")] == ["abc", "", "ENx", ""]
    assert stop.flush() == "EN"


@pytest.fixture
def llm(tmp_path: Path) -> LLM:
    return LLM(Tiny(context=40).write(tmp_path / "model.gguf"))


def test_greedy_tokens_are_the_most_probable(llm: LLM) -> None:
    prompt = [1, 2, 3]
    tokens = [t for t, _ in zip(llm.generate_tokens(prompt, temp=0.0), range(10), strict=False)]
    logits = llm.logits(prompt + tokens)
    assert logits[2:-1].argmax(1).tolist() == tokens


def test_generation_ends_with_the_context(llm: LLM) -> None:
    assert len(list(llm.generate_tokens([1] * 30, seed=1))) == llm.n_ctx - 30 + 1
    assert llm.timings.tokens == 11
    with pytest.raises(UsageError, match="41 tokens, the context holds 40"):
        list(llm.generate_tokens([1] * 41))


def test_a_shared_prefix_is_not_computed_again(llm: LLM) -> None:
    first = next(llm.generate_tokens([1, 2, 3, 4, 5], temp=0.0))
    assert llm.timings.prompt_tokens == 5
    again = next(llm.generate_tokens([1, 2, 3, 4, 5], temp=0.0))
    assert (again, llm.timings.prompt_tokens) == (first, 1)
    next(llm.generate_tokens([1, 2, 3, 9, 9, 9], temp=0.0))
    assert llm.timings.prompt_tokens == 3


def test_a_text_is_not_ended_by_the_length_of_another(llm: LLM) -> None:
    first = llm.generate_tokens([1, 2], seed=1)
    next(first)
    llm.logits([3] * llm.n_ctx)
    with pytest.raises(GgrunError, match="another text"):
        next(first)


def test_the_readers_time_is_not_the_models(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()  # a second from one look at the clock to the next
    monkeypatch.setattr("ggrun.engine.generate.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    for _ in zip(llm.generate_tokens([1, 2], seed=1), range(5), strict=False):
        for _ in range(1000):  # what the reader does
            next(ticks)
    assert llm.timings.tokens == 6
    assert llm.timings.generation == 5.0


def test_a_ctrl_c_leaves_the_cache_as_it_was(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = llm._engine
    engine.decode([1, 2, 3])
    extend = engine.cache.extend

    def interrupted(sequence: int, n: int) -> None:
        extend(sequence, n)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.cache, "extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.decode([4, 5])
    assert engine.cache.length(0) == 3


def test_stepping_back_leaves_no_trace(llm: LLM) -> None:
    engine = llm._engine
    want = llm.logits([1, 2, 3, 4, 5, 6])
    engine.cache.truncate(0, 3)
    engine.decode([9, 8, 7])
    engine.cache.truncate(0, 3)
    assert distance(engine.decode([4, 5, 6], all_logits=True), want[3:]) < 1e-12


def test_wrong_tokens_change_nothing(llm: LLM) -> None:
    before = llm.logits([1, 2])
    for wrong in ([50], [-1], []):
        with pytest.raises(UsageError):
            llm.logits(wrong)
    assert np.array_equal(llm.logits([1, 2]), before)


def test_several_sequences_in_one_cache(tmp_path: Path) -> None:
    from ggrun.arch.config import Config
    from ggrun.devices import open_devices
    from ggrun.engine.engine import Engine
    from ggrun.gguf import GGUF
    from ggrun.plan import single
    from ggrun.plan.usage import Sizes

    model = GGUF(Tiny().write(tmp_path / "model.gguf"))
    config = Config.from_gguf(model)
    devices = open_devices(["cpu"], 2)
    engine = Engine(
        model,
        config,
        single(config, "cpu"),
        devices,
        Sizes(512, sequences=3, keys="f32", values="f32"),
    )
    texts = {0: [1, 2, 3, 4], 1: [5, 6, 7, 8], 2: [9, 10, 11, 12]}
    turns = [(s, engine.decode(texts[s][i : i + 2], s, all_logits=True)) for i in (0, 2) for s in (2, 0, 1)]
    alone = Engine(
        model,
        config,
        single(config, "cpu"),
        devices,
        Sizes(512, keys="f32", values="f32"),
    )
    for sequence, tokens in texts.items():
        alone.cache.truncate(0, 0)
        want = alone.decode(tokens, all_logits=True)
        got = np.concatenate([logits for s, logits in turns if s == sequence])
        assert distance(got, want) < 1e-12
    devices["cpu"].close()

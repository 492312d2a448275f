"""A text whose engine is replaced, when a machine is lost: interrupts find the one that is there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ggrun import LLM, Interrupted
from ggrun.bundled import demo_model
from ggrun.engine.engine import Engine
from ggrun.engine.hosts import HostLost

PROMPT, SAMPLING = "The king ordered the", {"temp": 0.0, "ignore_eos": True, "max_tokens": 12}


def loaded() -> LLM:
    return LLM(Path(demo_model()), n_ctx=64, threads=1)


@pytest.fixture
def models() -> Iterator[tuple[LLM, LLM]]:
    """One that is used, and another that gives the engine that replaces its own."""
    with loaded() as used, loaded() as other:
        yield used, other


def test_an_interrupt_while_another_engine_is_loaded(models: tuple[LLM, LLM]) -> None:
    llm, other = models
    want = "".join(other.generate(PROMPT, **SAMPLING))
    other._engine.cache.truncate(0, 0)
    loads = []

    def replace(lost: HostLost) -> Engine:
        loads.append(lost.host)
        llm.interrupt()
        return other._engine

    pieces = llm.generate(PROMPT, **SAMPLING)
    got = next(pieces)
    llm._context._lost, llm._context._replace = HostLost("w", "is gone"), replace
    with pytest.raises(Interrupted):
        next(pieces)
    assert want.startswith(got)
    assert "".join(llm.generate(PROMPT, **SAMPLING)) == want
    assert loads == ["w"]


def test_an_interrupt_while_tokens_are_computed_again(
    models: tuple[LLM, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine stays, and the next text computes what is missing."""
    llm, other = models
    want = "".join(other.generate(PROMPT, **SAMPLING))
    other._engine.cache.truncate(0, 0)
    loads, decode = [], other._engine.decode

    def replace(lost: HostLost) -> Engine:
        loads.append(lost.host)
        return other._engine

    def interrupted(tokens: list[int], sequence: int) -> object:
        monkeypatch.setattr(other._engine, "decode", decode)
        llm.interrupt()
        return decode(tokens, sequence)

    pieces = llm.generate(PROMPT, **SAMPLING)
    next(pieces)
    llm._context._lost, llm._context._replace = HostLost("w", "is gone"), replace
    monkeypatch.setattr(other._engine, "decode", interrupted)
    with pytest.raises(Interrupted):
        next(pieces)
    assert "".join(llm.generate(PROMPT, **SAMPLING)) == want
    assert loads == ["w"]


def test_a_machine_that_was_lost_between_two_texts(
    models: tuple[LLM, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Already when the engine is to resume."""
    llm, other = models
    want = "".join(llm.generate(PROMPT, **SAMPLING))

    def resume() -> None:
        raise HostLost("w", "is gone")

    monkeypatch.setattr(llm._engine, "resume", resume)
    llm._context._replace = lambda lost: other._engine
    assert "".join(llm.generate(PROMPT, **SAMPLING)) == want

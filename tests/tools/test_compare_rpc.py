"""The comparison with llama.cpp's RPC server: arithmetic, order of play, our side with a real worker."""

import argparse
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from ggrun.bundled import demo_model

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))  # its files import each other as a script's do
    import compare_rpc

    yield compare_rpc
    for name in ("compare_rpc", "compare_llama_cpp", "compare_worker"):
        sys.modules.pop(name, None)


class Fake:
    """An engine whose speed is known, and who writes down when it is asked."""

    def __init__(self, log: list[str], engine: str) -> None:
        self._log, self._engine = log, engine
        self._seconds = {"ggrun": 0.5, "plain": 2.0}[engine]
        self.start, self.hello = 2 * self._seconds, {"load": self._seconds}
        log.append(f"{engine} starts")

    def ask(self, do: str, n: int, **_: Any) -> float:
        self._log.append(f"{self._engine} {do}{n}")
        return self._seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def test_they_take_turns_and_what_comes_of_it(tool: Any) -> None:
    log: list[str] = []
    o = argparse.Namespace(r=1, p=[8], n=[4], pause=0.0)
    found = list(tool.compare(o, lambda engine: Fake(log, engine)))
    assert [(r.test, r.unit, r.ratio()) for r in found] == [
        ("first load", "s", 4.0),
        ("second load", "s", 4.0),
        ("first start", "s", 4.0),
        ("second start", "s", 4.0),
        ("pp8", "t/s", 4.0),
        ("tg4", "t/s", 4.0),
    ]
    assert found[4].samples == {"ggrun": [16.0], "plain": [4.0]}
    assert log[:4] == ["ggrun starts", "plain starts"] * 2
    assert log[6:] == ["ggrun pp8", "plain pp8"] * 2 + ["ggrun tg4", "plain tg4"] * 2
    text = tool.report({"cpu": "x"}, found)
    assert "| pp8 t/s | 16 | 4 | **4.00** |" in text


def test_our_side(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGRUN_CONFIG", str(tmp_path))
    with tool.our_worker(tmp_path, 1) as address:
        settings = {"model": str(demo_model()), "threads": 1, "n_ctx": 128, "layers": 4, "rpc": address}
        with tool.Process("ggrun", settings) as client:
            assert client.ask("tg", n=4, depth=0) > 0
    assert list((tmp_path / "cache").glob("tensors/??/*")), "the layers were on the worker"

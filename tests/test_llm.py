"""The public class, on the demo model and on models without words."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggrun
from ggrun import LLM, GgrunError, Interrupted, SamplingOptions, Tokenizer, UsageError
from ggrun.bundled import demo_model
from ggrun.engine.batch import Batch
from ggrun.rpc.placed import Placed
from ggrun.tokens import TokenizerError
from tests.tiny import Tiny
from tests.waiting import PATIENCE, ended, until, workers


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(demo_model())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_load_leaves_garbage_collection_as_it_was(
    frozen: bool, enabled: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off while it loads; what it made counts as old then, unless somebody has frozen something."""
    seen, calls, count = list[bool](), list[str](), gc.get_freeze_count()

    def placed(*args: Any) -> Any:
        seen.append(gc.isenabled())
        if fails:
            raise GgrunError("no")
        return Placed(*args)

    monkeypatch.setattr("ggrun.llm.Placed", placed)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: count + frozen)
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    monkeypatch.setattr(gc, "unfreeze", lambda: calls.append("unfreeze"))
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(GgrunError) if fails else nullcontext():
            LLM(demo_model()).close()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert seen == [False]
    assert calls == ([] if frozen else ["freeze", "unfreeze"])


def test_text_to_tokens_and_back(llm: LLM) -> None:
    text = "The king's daughter said: “Let me in!”"
    tokens = llm.tokenize(text)
    assert tokens == Tokenizer.from_gguf(demo_model()).encode(text, add_special=True)
    assert llm.detokenize(tokens) == text


def test_golden_text(llm: LLM) -> None:
    # From the model's card: what its own training tool says in float32, and where it ends by itself.
    tale = " servants to be brought before him, and they were all married, and lived happily ever after."
    assert "".join(llm.generate("The king ordered the", temp=0.0)) == tale


def test_a_text_cannot_go_on_in_another(llm: LLM) -> None:
    first = llm.generate("Once upon a time", seed=1)
    next(first)
    llm.logits(llm.tokenize("In the forest"))
    with pytest.raises(GgrunError, match="another text"):
        list(first)


def test_a_closed_model_says_so() -> None:
    with LLM(demo_model(), threads=2) as closed:
        pieces = closed.generate("Once upon a time", seed=1)
        next(pieces)
    for use in (lambda: list(pieces), lambda: closed.logits([1])):
        with pytest.raises(GgrunError, match="closed"):
            use()


def test_a_forked_process_is_told_and_does_not_hang(llm: LLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: that is the point
        child = os.fork()
    if child == 0:
        try:
            llm.logits([1])
        except GgrunError as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_late_job_is_not_missed(tmp_path: Path) -> None:
    # A caller may be held up between waking the threads and posting the job, for longer than they wait.
    with LLM(Tiny().write(tmp_path / "model.gguf"), threads=3) as model:
        crew = model._placed.devices["cpu"].pool._crew
        wake = crew.wake
        crew.wake = lambda: (wake(), time.sleep(0.05))
        for _ in range(3):
            assert model.logits([1, 2]).shape == (2, 50)


@pytest.mark.parametrize("tokens", [["a"], [2**70], [[1, 2]], [1.5], [], [-1], [4096]])
def test_tokens_that_are_none(llm: LLM, tokens: list[object]) -> None:
    with pytest.raises(UsageError):
        llm.logits(tokens)


def test_interrupting_a_prompt(tmp_path: Path) -> None:
    path = Tiny(layers=8, width=512, ff=2048, context=4096).write(tmp_path / "slow.gguf")
    tokens = [i % 50 for i in range(2000)]
    with LLM(path, n_ubatch=2000, threads=2) as slow:
        want = slow.logits(tokens)
        start = time.process_time()
        slow.logits(tokens)
        whole = time.process_time() - start
        assert any(ends_early(slow, tokens, whole) for _ in range(10))
        assert np.array_equal(slow.logits(tokens), want)


def ends_early(model: LLM, tokens: list[int], whole: float) -> bool:
    """Whether an interrupt amid a prompt ends it; on a busy machine it may come too late for that.

    whole    processor time of all of it
    """
    start = time.process_time()

    def interrupt() -> None:
        until(lambda: time.process_time() - start > whole / 20)
        model.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        model.logits(tokens)
    except Interrupted:
        return time.process_time() - start < whole / 2
    finally:
        thread.join()
    return False


def test_an_interrupt_between_two_tokens(llm: LLM) -> None:
    """It comes while Python runs, and no program: the next one finds it."""
    for begin in (llm.generate, lambda text: llm.generate_tokens(llm.tokenize(text))):
        for read in (0, 1, 3):
            pieces = begin("Once upon a time")
            for _ in range(read):
                next(pieces)
            llm.interrupt()
            with pytest.raises(Interrupted):
                next(pieces)
            assert "".join(llm.generate("The king ordered the", temp=0.0, max_tokens=2)) == " servants to"


def test_an_interrupt_between_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(Tiny(context=64).write(tmp_path / "model.gguf"), n_ubatch=4, n_ctx=64) as model:
        want, stage = model.logits([1] * 20), model._engine._pipeline._stages[0]
        run, runs = stage.run, []

        def interrupted(batch: Batch) -> None:
            runs.append(batch)
            run(batch)
            if len(runs) == 2:
                model.interrupt()

        monkeypatch.setattr(stage, "run", interrupted)
        with pytest.raises(Interrupted):
            model.logits([1] * 20)
        assert len(runs) == 3
        assert np.array_equal(model.logits([1] * 20), want)
        windows = model.perplexity([1] * 60, window=20)
        next(windows)
        model.interrupt()
        with pytest.raises(Interrupted):
            next(windows)
        assert len(list(model.perplexity([1] * 60, window=20))) == 3


def test_one_model_from_several_threads(tmp_path: Path) -> None:
    """Right or refused, never wrong; logits are one step, and never refused."""
    from concurrent.futures import ThreadPoolExecutor

    prompts = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11, 12], [1, 2, 9]]
    with LLM(Tiny(context=64).write(tmp_path / "model.gguf"), n_ubatch=2, threads=2) as model:

        def text(prompt: list[int]) -> list[int]:
            ids = model.generate_tokens(prompt, temp=0.0)
            return [token for token, _ in zip(ids, range(6), strict=False)]

        logits, texts = [model.logits(p) for p in prompts], [text(p) for p in prompts]
        finished: list[int] = []

        def work(i: int) -> None:
            for _ in range(25):
                assert np.array_equal(model.logits(prompts[i]), logits[i])
                with suppress(GgrunError):  # another text was begun
                    assert text(prompts[i]) == texts[i]
                    finished.append(i)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert finished


def test_a_fork_while_another_thread_computes(llm: LLM) -> None:
    with llm._context._lock.here(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            signal.alarm(int(PATIENCE))
            status = 1
            try:
                llm.logits([1])
            except GgrunError:
                llm.close()
                status = 7
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_too_many_threads() -> None:
    with pytest.raises(UsageError, match="512"):
        LLM(demo_model(), threads=513)


def test_ignoring_the_end_goes_on(llm: LLM) -> None:
    text = "".join(llm.generate("The king ordered the", temp=0.0, ignore_eos=True, max_tokens=60))
    assert llm.timings.tokens == 60
    assert len(text) > 150


def test_a_single_stop_string_is_one(llm: LLM) -> None:
    assert (
        "".join(llm.generate("The king ordered the", temp=0.0, stop="before")) == " servants to be brought "
    )


def test_logits_have_one_row_a_token(llm: LLM) -> None:
    tokens = llm.tokenize("Once upon a time there was")
    logits = llm.logits(tokens)
    assert logits.shape == (len(tokens), llm.config.vocab)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_generate_takes_text_or_tokens_and_reproduces(llm: LLM) -> None:
    prompt = "In the forest"
    one = "".join(llm.generate(prompt, max_tokens=30, seed=3))
    two = "".join(llm.generate(llm.tokenize(prompt), max_tokens=30, sampling=SamplingOptions(seed=3)))
    assert one == two
    assert llm.timings.tokens <= 30
    assert llm.timings.prompt_tokens == 1  # the rest of the prompt was in the cache
    assert "".join(llm.generate(prompt, max_tokens=0)) == ""


def test_stop_strings_and_the_end_of_a_text(llm: LLM) -> None:
    text = "".join(llm.generate("Once upon a time", max_tokens=60, temp=0.0))
    stop = text[10:14]
    assert (
        "".join(llm.generate("Once upon a time", max_tokens=60, temp=0.0, stop=[stop]))
        == text[: text.find(stop)]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": b"Once"}, {"prompt": None}, {"prompt": 5}, {"max_tokens": "5"}, {"max_tokens": 1.5},
        {"max_tokens": -2}, {"max_tokens": None}, {"stop": 5}, {"stop": [5]}, {"grammar": 5},
        {"json_schema": 5}, {"sampling": {"temp": 0}},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_text_can_be_made_with(llm: LLM, wrong: dict[str, Any]) -> None:
    """What the types say, to those who do not check them."""
    with pytest.raises(UsageError):
        llm.generate(**{"prompt": "Once", **wrong})


def test_options_that_do_not_exist(llm: LLM) -> None:
    with pytest.raises(UsageError, match="temperature"):
        llm.generate("x", temperature=1.0)
    with pytest.raises(UsageError, match="both"):
        llm.generate("x", sampling=SamplingOptions(), temp=1.0)
    with pytest.raises(UsageError, match="n_ubatch"):
        LLM(demo_model(), n_ubatch=0)
    with pytest.raises(UsageError, match="cache type 'q9'"):
        LLM(demo_model(), cache_type_k="q9")


@pytest.mark.parametrize("wrong", [
    {"threads": "2"}, {"threads": 0}, {"devices": ["cpu"]}, {"plan": {}}, {"sequences": 2}, {"fit": "on"},
    {"n_ctx": 1.5}, {"overrides": "x=cpu"}, {"all_reduce": "ring"}, {"wire": ["bf16"]}, {"rpc": 5},
])  # fmt: skip
def test_options_of_the_wrong_kind(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))) as error:
        LLM(demo_model(), **wrong)
    assert "\n" not in str(error.value)


def test_a_model_without_words_takes_token_ids(tmp_path: Path) -> None:
    with LLM(Tiny().write(tmp_path / "wordless.gguf")) as wordless:
        assert wordless.logits([1, 2, 3]).shape == (3, 50)
        assert len(list(zip(wordless.generate_tokens([1, 2, 3], seed=1), range(4), strict=False))) == 4
        with pytest.raises(TokenizerError):
            wordless.tokenize("words")
        with pytest.raises(TokenizerError):
            wordless.generate("words")


def test_models_come_and_go(tmp_path: Path) -> None:
    path = Tiny().write(tmp_path / "model.gguf")
    before = workers()
    for _ in range(5):
        with LLM(path, threads=3) as model:
            model.logits([1, 2])
    ended(workers() - before)


def test_two_models_at_once_from_two_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    path = Tiny().write(tmp_path / "model.gguf")
    with LLM(path, threads=2) as a, LLM(path, threads=2) as b, ThreadPoolExecutor(2) as pool:
        want = a.logits([1, 2, 3, 4])
        # A model belongs to one thread at a time; two models do not know of each other.
        answers = pool.map(lambda model: [model.logits([1, 2, 3, 4]) for _ in range(50)], (a, b))
        assert all(np.array_equal(logits, want) for answer in answers for logits in answer)


def test_importing_is_cheap() -> None:
    code = "import sys, ggrun; sys.exit(bool({'numba', 'tokenizers', 'jinja2', 'gguf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert ggrun.__version__


def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    """Nor does it import what only compiling needs, or only cards: that would be half of its time."""
    code = (
        "from ggrun import LLM, kernels; from ggrun.bundled import demo_model; compiled = []\n"
        "with kernels.watch(compiled.append): LLM(demo_model()).logits([1, 2])\n"
        "import sys; heavy = 'numba.np.linalg', 'numba.np.arrayobj', 'ggrun.devices.cuda.device', 'gguf'\n"
        "print(len(compiled), *(name for name in heavy if name in sys.modules))"
    )
    env = os.environ | {"GGRUN_CACHE": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    compiled, *imported = first.stdout.split()
    assert int(compiled) > 10
    assert "numba.np.linalg" in imported
    assert second.stdout == "0\n"

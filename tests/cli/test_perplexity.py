"""ggrun perplexity as users meet it: a process, its output, its exit status."""

import re
import signal
import subprocess
from pathlib import Path

import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from tests.cli.test_run import GGRUN, complaint, ggrun, here, listen_to_ctrl_c
from tests.tiny import Tiny
from tests.waiting import PATIENCE

TALE = "Once upon a time there was a king who had three daughters, and the youngest was a cook.\r\n" * 12


@pytest.fixture(scope="module")
def tale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "tale.txt"
    file.write_bytes(TALE.encode() + b"\n")
    return file


def test_windows_as_they_come_and_the_final_estimate(tale: Path) -> None:
    done = ggrun("perplexity", "-f", tale, "-c", "64", "-ub", "20")
    assert done.returncode == 0, done.stderr
    with LLM(demo_model(), n_ctx=64, n_ubatch=20) as llm:  # other micro-batches add in another order
        want = list(llm.perplexity(TALE, window=64))
    assert len(want) > 2
    running, final = done.stdout.splitlines()
    assert re.sub(r"\d+\.\d+", "", running) == "".join(f"[{e.window}]," for e in want)
    shown = [float(value) for value in re.findall(r"\](\d+\.\d{4}),", running)]
    assert shown == pytest.approx([e.value for e in want], abs=5.1e-5)
    parts = re.fullmatch(r"Final estimate: PPL = (\d+\.\d{4}) \+/- (\d+\.\d{5})", final)
    assert parts
    assert float(parts[1]) == shown[-1]
    assert float(parts[2]) == pytest.approx(want[-1].error, abs=5.1e-6)
    for words in (f"{len(want)} windows of 64 tokens", " left", f"{64 * len(want)} tokens in", "tokens/s"):
        assert words in done.stderr


def test_the_text_may_be_typed_with_or_without_escapes() -> None:
    common = ("perplexity", "-c", "16", "--chunks", "2", "-p")
    typed, meant = ("\\n".join(["once there was a king"] * 12), "\n".join(["once there was a king"] * 12))
    want = ggrun(*common, meant)
    assert want.returncode == 0, want.stderr
    assert want.stdout.startswith("[1]")
    assert ggrun(*common, typed, "-e").stdout == want.stdout
    assert ggrun(*common, typed).stdout != want.stdout


def test_the_context_is_512_where_none_is_given(tale: Path) -> None:
    line = complaint(ggrun("perplexity", "-f", tale), 2)
    for words in ("tokens", "context of 512", "1024", "-c"):
        assert words in line


def test_a_context_larger_than_the_models_gets_a_note() -> None:
    done = ggrun("perplexity", "-p", TALE * 5, "-c", "600", "--chunks", "1")
    assert done.returncode == 0, done.stderr
    assert "made for a context of 512" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 2, ["-f", "-p"]),
        (["-f", "x", "-p", "y"], 2, ["-f", "-p", "not both"]),
        (["-f", "nowhere.txt"], 1, ["nowhere.txt", "No such file"]),
        (["-p", TALE, "-c", "2"], 2, ["3 or more"]),
        (["-p", TALE, "-c", "64", "--chunks", "0"], 2, ["chunks"]),
        (["-p", TALE, "--ppl-stride", "64"], 2, ["--ppl-stride"]),
        (["-p", TALE, "-c", "64", "-m", "nowhere.gguf"], 1, ["nowhere.gguf"]),
    ],
    ids=lambda v: " ".join(v)[-30:] if isinstance(v, list) else str(v),
)
def test_bad_usage_gets_one_line(
    args: list[str], status: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(here(capsys, "perplexity", *args), status)
    for word in words:
        assert word in line


def test_bad_files_get_one_line(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Märchen ".encode("latin-1") * 100)
    assert "UTF-8" in complaint(ggrun("perplexity", "-f", latin), 1)
    complaint(ggrun("perplexity", "-f", tmp_path), 1)
    wordless = Tiny().write(tmp_path / "wordless.gguf")
    assert "tokenizer" in complaint(ggrun("perplexity", "-m", wordless, "-p", "x", "-c", "16"), 1)


def test_ctrl_c_keeps_what_was_printed(tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text(TALE * 300)
    process = subprocess.Popen(
        [*GGRUN, "perplexity", "-f", str(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        preexec_fn=listen_to_ctrl_c,
    )
    assert process.stdout is not None
    begin = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert re.fullmatch(rb"(\[\d+\]\d+\.\d{4},)+\n", begin + rest)
    assert b"Traceback" not in errors

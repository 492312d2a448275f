"""tools/make_model.py: weights by gguf-py's word, mixes by llama.cpp's, sizes by the models' own."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
from itertools import groupby, islice
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from ggrun import LLM
from ggrun.gguf import FORMATS, GGUF
from ggrun.gguf.types import tensor_nbytes
from ggrun.plan.mixes import ALIASES, MIXES, PURE, find_mix
from ggrun.plan.shapes import SHAPES, slots
from tests.cli.test_run import listen_to_ctrl_c
from tests.waiting import PATIENCE, until

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from make_model import Progress, write_model  # noqa: E402
from model_blocks import Weights  # noqa: E402
from model_shapes import metadata, resized, rope_factors  # noqa: E402

# What llama.cpp chose for models like these, by role and layer: llama_model_quantize's dry run, as it is in
# llama-cpp-python 0.3.36.
CHOSEN = json.loads((Path(__file__).parent / "llama_cpp_mixes.json").read_text())
LIKE = {
    "tiny": ("tinyllama-1.1b", {"width": 256, "heads": 8, "kv_heads": 1, "head_dim": 32, "ff": 512}),
    "l2": ("llama-2-7b", {"width": 256, "heads": 4, "kv_heads": 4, "head_dim": 64, "ff": 512}),
    "70b": ("llama-3-70b", {"width": 256, "heads": 8, "kv_heads": 1, "head_dim": 32, "ff": 512}),
    "mixtral": ("mixtral-8x7b", {"width": 256, "heads": 8, "kv_heads": 2, "head_dim": 32, "ff": 256}),
    "q2odd": ("qwen2.5-0.5b", {"width": 224, "heads": 7, "kv_heads": 1, "head_dim": 32, "ff": 256}),
}
SMALL = {"layers": 2, "width": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "ff": 256, "vocab": 600}

# Parameters of the models' public safetensors files; a tied matrix counts once.
PARAMETERS = {
    "tinyllama-1.1b": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
}


def tool(*args: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "make_model.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, **options)


def complaint(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("make_model: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def numbers(name: str, std: float, n: int = 1 << 17, seed: int = 0) -> np.ndarray:
    raw = Weights(FORMATS[name], std, (seed, 1)).draw(n)
    assert raw.nbytes == FORMATS[name].nbytes(n)
    return quants.dequantize(raw.view(np.uint8).reshape(-1, FORMATS[name].size), GGMLQuantizationType[name])


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("columns", [64, 28672])
def test_weights_have_the_size_that_was_asked_for(name, columns):
    std = columns**-0.5
    weights = numbers(name, std).astype(np.float64)
    assert np.isfinite(weights).all()
    assert weights.std() == pytest.approx(std, rel=0.05)
    assert abs(weights.mean()) < 0.03 * std


@pytest.mark.parametrize("name", [name for name in PURE if FORMATS[name].block > 1])
def test_blocks_differ_in_bits_and_in_scale(name):
    blocks = numbers(name, 0.02).reshape(-1, FORMATS[name].block)
    assert len(np.unique(blocks, axis=0)) == len(blocks)
    assert len(np.unique(abs(blocks).max(axis=1))) > 1


@pytest.mark.parametrize("name", ["F16", "Q4_K", "MXFP4"])
def test_a_seed_says_all(name):
    assert (numbers(name, 0.1) == numbers(name, 0.1)).all()
    assert (numbers(name, 0.1) != numbers(name, 0.1, seed=1)).any()


def runs(formats: list[str]) -> str:
    found = [(name, len(list(same))) for name, same in groupby(formats)]
    return found[0][0] if len(found) == 1 else " ".join(f"{n}*{name}" for name, n in found)


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("mix", MIXES)
def test_llama_cpp_would_choose_the_same_formats(like, mix):
    name, sizes = LIKE[like]
    shape = resized(SHAPES[name], vocab=300, **sizes)
    chosen: dict[str, list[str]] = {}
    for slot in slots(shape):
        if slot.role not in ("ones", "noise", "rope"):
            chosen.setdefault(slot.role, []).append(MIXES[mix].format(slot, shape).name)
    assert {role: runs(formats) for role, formats in chosen.items()} == CHOSEN[like][mix]


def test_file_types_are_llama_cpps():
    names = {"F32": "ALL_F32", "MXFP4_MOE": "MOSTLY_MXFP4_MOE"}
    for name, mix in MIXES.items():
        known = gguf.LlamaFileType.__members__.get(names.get(name, f"MOSTLY_{name}"))
        assert known is None or known == mix.file_type, name


def test_pure_fills_all_matrices():
    shape = resized(SHAPES["mixtral-8x7b"], layers=8)
    matrices = [slot for slot in slots(shape) if slot.role not in ("ones", "noise", "rope")]
    for name in PURE:
        assert {find_mix(f"pure:{name}").format(slot, shape).name for slot in matrices} == {name}
    assert find_mix("q4_k") is MIXES[ALIASES["Q4_K"]]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_models_parameters(name):
    found = sum(int(np.prod(s.shape)) for s in slots(SHAPES[name]) if s.role != "rope")
    assert found == PARAMETERS[name]


def test_a_70b_model_has_its_well_known_size():
    shape = SHAPES["llama-3-70b"]
    matrices = [s for s in slots(shape) if s.role not in ("ones", "noise", "rope")]
    size = sum(tensor_nbytes(s.shape, MIXES["Q4_K_M"].format(s, shape)) for s in matrices)
    assert size / 1e9 == pytest.approx(42.5, abs=0.1)  # 42.52 GB is what is downloaded


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b"])
def test_rope_factors_are_llama_3s(name):
    shape = SHAPES[name]
    expected = []
    for pair in range(shape.head_dim // 2):
        turns = 8192 * shape.base ** (-2 * pair / shape.head_dim) / (2 * np.pi)
        slope = (turns - 1) / 3
        ramp = 1 / ((1 - slope) / shape.rope_factor + slope)
        expected.append(1.0 if turns > 4 else shape.rope_factor if turns < 1 else ramp)
    assert rope_factors(shape) == pytest.approx(np.array(expected), rel=1e-5)


def test_vocabularies_have_no_token_twice():
    for shape in SHAPES.values():
        tokens = metadata(shape, "F16", 1)["tokenizer.ggml.tokens"]
        assert len(tokens) == len(set(tokens)) == shape.vocab


@pytest.mark.parametrize(
    ("name", "experts"),
    [
        ("tinyllama-1.1b", {}),
        ("llama-3.2-1b", {}),
        ("mixtral-8x7b", {}),
        ("qwen2.5-7b", {}),
        ("qwen3-8b", {}),
        ("qwen3-30b-a3b", {"experts": 8, "experts_used": 2}),
    ],
)
def test_ggrun_runs_every_architecture(tmp_path, name, experts):
    shape = resized(SHAPES[name], **SMALL, **experts)
    [path] = write_model(tmp_path / "small.gguf", shape, "Q8_0")
    with LLM(path, n_ctx=64, threads=1) as llm:
        tokens = llm.tokenize("Hello, new world!\n")
        assert llm.detokenize(tokens) == "Hello, new world!\n"
        logits = llm.logits(tokens)
        assert logits.shape == (len(tokens), 600)
        assert np.isfinite(logits).all()
        assert 0.5 < logits.std() < 2
        assert all(0 <= token < 600 for token in islice(llm.generate_tokens(tokens, temp=0.0), 3))


def test_the_command_writes_what_it_says(tmp_path):
    out = tmp_path / "a.gguf"
    sizes = [f"--{name.replace('_', '-')}={n}" for name, n in (SMALL | {"width": 256}).items()]
    done = tool("tinyllama-1.1b", "q4_k_m", out, "-s", 7, *sizes)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{out}: 0.00")
    assert done.stdout.endswith("; 21 tensors: 11 Q4_K, 5 F32, 3 Q6_K, 2 Q5_0\n")
    assert os.listdir(tmp_path) == ["a.gguf"]
    fields = gguf.GGUFReader(out).fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert fields["general.quantization_version"].contents() == 2
    assert fields["llama.attention.head_count_kv"].contents() == 2
    [again] = write_model(tmp_path / "b.gguf", resized(SHAPES["tinyllama-1.1b"], **SMALL | {"width": 256}),
                          "q4_k_m", seed=7)  # fmt: skip
    assert again.read_bytes() == out.read_bytes()


def test_shards_are_one_model(tmp_path):
    done = tool(
        "qwen3-0.6b", "pure:F16", tmp_path / "m.gguf", "--layers=2", "--vocab=600", "--split-max-size=9M"
    )
    assert done.returncode == 0, done.stderr
    names = sorted(os.listdir(tmp_path))
    assert len(names) > 2
    assert all(os.path.getsize(tmp_path / name) < 9_100_000 for name in names)
    assert len(GGUF(tmp_path / names[0]).tensors) == len(slots(resized(SHAPES["qwen3-0.6b"], layers=2)))


def test_memory_stays_small(tmp_path):
    # A process starts with its parent's greatest size: this one is small.
    code = "import resource as r, subprocess as s, sys; s.run(sys.argv[1:], check=True); " \
        "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)"  # fmt: skip
    out = tmp_path / "m.gguf"
    command = [
        sys.executable,
        "-c",
        code,
        sys.executable,
        TOOLS / "make_model.py",
        "tinyllama-1.1b",
        "Q8_0",
        out,
    ]
    done = subprocess.run([*map(str, command), "--layers=1"], capture_output=True, text=True, check=True)
    assert os.path.getsize(out) > 180e6
    assert int(done.stdout.split()[-1]) * 1024 < 90e6  # of which the interpreter and numpy are 35


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gpt-5", "F16", "x"], "unknown shape 'gpt-5'"),
        (["qwen3-8b", "Q4_K_XXL", "x"], "unknown mix 'Q4_K_XXL'"),
        (["qwen3-8b", "pure:Q9_0", "x"], "no format 'Q9_0'"),
        (["qwen3-8b", "F16"], "OUT"),
        (["qwen3-8b", "F16", "x", "--layers", "0"], "whole number of 1 or more"),
        (["qwen3-8b", "F16", "x", "--kv-heads", "5"], "32 heads cannot share 5"),
        (["qwen3-8b", "F16", "x", "--vocab", "258"], "vocab must be 259 or more, not 258"),
        (["qwen3-8b", "F16", "x", "--head-dim", "33"], "rotated in pairs"),
        (["qwen3-8b", "F16", "x", "--experts", "4", "--experts-used", "2"], "has no experts"),
        (["mixtral-8x7b", "F16", "x", "--experts-used", "9"], "9 of 8 experts"),
        (["qwen3-8b", "F16", "x", "--split-max-size", "3T"], "such as 500M"),
        (["qwen3-8b", "F16", "x", "-s", "-1"], "seed"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(args, words, tmp_path):
    assert words in complaint(tool(*args, cwd=tmp_path), 2)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = tool("qwen3-0.6b", "Q4_0", tmp_path / "m.gguf", preexec_fn=limit)
    assert "cannot be written" in complaint(done, 1)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_one_line(tmp_path):
    assert "No such file" in complaint(tool("qwen3-0.6b", "Q4_0", tmp_path / "no" / "m.gguf"), 1)


def test_ctrl_c_leaves_nothing(tmp_path):
    command = [sys.executable, TOOLS / "make_model.py", "llama-3-8b", "Q8_0", tmp_path / "m.gguf"]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c)
    until(lambda: any(path.stat().st_size > 1 << 20 for path in tmp_path.iterdir()))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE) == (None, b"")
    assert process.returncode == 130
    assert os.listdir(tmp_path) == []


def test_progress_is_for_terminals():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, pipe = Terminal(), io.StringIO()
    for stream in (screen, pipe):
        progress = Progress(2_000_000_000, stream)
        progress.add(500_000_000)
        progress.clear()
    assert screen.getvalue().startswith("\r0.50 of 2.00 GB, ")
    assert screen.getvalue().endswith("MB/s\x1b[K\r\x1b[K")
    assert pipe.getvalue() == ""

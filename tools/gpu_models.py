"""The models that are measured: random weights, by tools/make_model.py, made beside other steps."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ggrun.plan.shapes import SHAPES, Shape
from tools.gpu_step import ROOT, Figure, Step, last_line
from tools.model_shapes import resized

_TINY = {"layers": 2, "width": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "ff": 512, "vocab": 300}
_SPARE = 4 << 30
"""Bytes that stay free where models are written, and on the card beside their weights."""


@dataclass(frozen=True)
class Model:
    """A shape and a mix; `nbytes` is about what its file takes."""

    title: str
    shape: str
    mix: str
    nbytes: int

    @property
    def name(self) -> str:
        """Of its file, which is there only as a whole."""
        return f"{self.shape}-{self.mix}.gguf"


SMALL = Model("8B Q4_K_M", "llama-3-8b", "Q4_K_M", 4_920_000_000)
EIGHT_BITS = Model("8B Q8_0", "llama-3-8b", "Q8_0", 8_540_000_000)
LARGE = Model("70B Q4_K_M", "llama-3-70b", "Q4_K_M", 42_520_000_000)
MODELS = (SMALL, EIGHT_BITS, LARGE)


def run(step: Step) -> None:
    """Make them one after the other, the small ones first; what does not fit is told."""
    for model in MODELS:
        step.attempt(f"made {model.title}", partial(_make, step, model))


def _folders(step: Step) -> list[Path]:
    """Where models may be, the best first."""
    return [Path(folder) for folder in step.settings["models"]]


def _found(step: Step, name: str) -> Path | None:
    return next((path for folder in _folders(step) if (path := folder / name).exists()), None)


def _failed(model: Model) -> str:
    """The name of a file that says why it was not made."""
    return f"{model.name}.failed"


def _require_card(step: Step, model: Model) -> None:
    """RuntimeError when the model does not fit the card."""
    card = step.settings["card_bytes"]
    if not step.emulated and model.nbytes + _SPARE > card:
        raise RuntimeError(f"{model.nbytes / 1e9:.1f} GB do not fit the card, which has {card / 1e9:.1f} GB")


def _room(step: Step, model: Model) -> Path:
    """A folder that the model fits; RuntimeError when there is none."""
    free = {folder: shutil.disk_usage(folder).free for folder in _folders(step)}
    needed = 0 if step.emulated else model.nbytes + _SPARE
    if found := next((folder for folder, nbytes in free.items() if nbytes >= needed), None):
        return found
    room = ", ".join(f"{folder.parent} has {nbytes / 1e9:.1f} GB" for folder, nbytes in free.items())
    raise RuntimeError(f"there is no room for {model.nbytes / 1e9:.1f} GB: {room}")


def shape_of(step: Step, model: Model) -> Shape:
    """The sizes that the model has here."""
    return resized(SHAPES[model.shape], **_TINY) if step.emulated else SHAPES[model.shape]


def is_made(step: Step, model: Model) -> bool:
    """Whether its file is whole, or will never be."""
    return bool(_found(step, model.name) or _found(step, _failed(model)))


def ready(step: Step, model: Model) -> Path:
    """The model's file, as soon as it is whole; RuntimeError when it will never be."""
    _require_card(step, model)
    step.wait_for(lambda: is_made(step, model), f"the model {model.title}")
    if why := _found(step, _failed(model)):
        raise RuntimeError(f"the model was not made: {why.read_text()}")
    path = _found(step, model.name)
    assert path
    return path


def _make(step: Step, model: Model) -> None:
    try:
        _require_card(step, model)
        path = _room(step, model) / model.name
        said = _made(step, model, path)
    except RuntimeError as error:  # those who wait for it must hear of it
        (_folders(step)[0] / _failed(model)).write_text(str(error))
        raise
    how = f"tools/make_model.py {model.shape} {model.mix}: {said}"
    step.tell(Figure(f"made {model.title}", path.stat().st_size / 1e9, "GB", how=how))


def _made(step: Step, model: Model, path: Path) -> str:
    """What the tool says."""
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in _TINY.items()] if step.emulated else []
    command = [sys.executable, "tools/make_model.py", model.shape, model.mix, str(path), *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(last_line(done.stderr))
    return done.stdout.strip().partition(": ")[2]

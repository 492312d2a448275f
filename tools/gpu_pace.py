"""Times a model on logical devices of one card, split by layer, as ggrun bench does it on one.

python -m tools.gpu_pace [EMULATED, PATH, DEVICES, PROMPT, GENERATED, REPETITIONS], as JSON; prints seconds.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.engine.engine import Engine
from ggrun.engine.generate import usual_top
from ggrun.gguf import GGUF
from ggrun.plan.usage import Sizes
from tools.gpu_peer import by_layer
from tools.gpu_step import Step
from tools.gpu_time import open_cards


class Loaded:
    """A model on so many logical devices of a card; `seconds` is what loading took."""

    def __init__(self, path: Path, emulated: bool, devices: int, positions: int) -> None:
        model = GGUF(path)
        config = Config.from_gguf(model)
        self._devices: dict[str, Device] = {**open_cards(emulated, devices)}
        begin = time.perf_counter()
        plan = by_layer(config, devices)
        self.engine = Engine(model, config, plan, self._devices, Sizes(positions))
        for device in self._devices.values():
            device.stream.synchronize()
        self.seconds = time.perf_counter() - begin
        self.tokens: list[int] = np.random.default_rng(1).integers(config.vocab, size=positions).tolist()

    def close(self) -> None:
        """End the streams."""
        for device in self._devices.values():
            device.close()


def pace(loaded: Loaded, prompt: int, generated: int, repetitions: int) -> dict[str, Any]:
    """Seconds of a prompt, and of tokens one by one from no context, each after one that is not timed."""
    engine, tokens = loaded.engine, loaded.tokens
    top = usual_top(engine.config.vocab)

    def read() -> None:
        engine.evaluate(tokens[:prompt], top=top)

    def write() -> None:
        for token in tokens[:generated]:
            engine.evaluate([token], top=top)

    def seconds(work: Callable[[], None]) -> float:
        engine.cache.truncate(0, 0)
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    tests = {"prompt": read, "decode": write}
    return {name: [seconds(work) for _ in range(repetitions + 1)][1:] for name, work in tests.items()}


def paced(
    step: Step, path: Path, devices: int, prompt: int, generated: int, repetitions: int
) -> dict[str, Any]:
    """The seconds of a model in a process of its own: with `load`, those of loading it."""
    settings = json.dumps([step.emulated, str(path), devices, prompt, generated, repetitions])
    (line,) = step.lines([sys.executable, "-m", "tools.gpu_pace", settings])
    found: dict[str, Any] = json.loads(line)
    return found


def main() -> None:
    """Load, time, print."""
    emulated, path, devices, *sizes = json.loads(sys.argv[1])
    loaded = Loaded(Path(path), emulated, devices, max(sizes[:2]))
    print(json.dumps({"load": loaded.seconds, **pace(loaded, *sizes)}))
    loaded.close()


if __name__ == "__main__":
    main()

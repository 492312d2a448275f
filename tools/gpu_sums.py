"""Sums over two logical devices of one card: right, and how long they take.

On one card nothing goes over a bus: what is timed is launches, copies within the memory, and additions.
"""

import os
from functools import partial

from ggrun.devices.cuda.sum_checks import SIZES, check_reductions, time_reductions
from tools.gpu_step import Figure, Step
from tools.gpu_time import open_cards

_HOW = "the host's clock around 8 sums, one behind the other: the best of 2"


def run(step: Step) -> None:
    """By copies, and by NCCL, which from 2.30 on takes a card twice when the environment says that it may."""
    os.environ["NCCL_MULTI_RANK_GPU_ENABLE"] = "1"
    ways = [("copy", "f32"), ("copy", "bf16")] + ([] if step.emulated else [("nccl", "f32")])
    for way, wire in ways:
        step.attempt(f"sums by {way}, {wire}", partial(_sums, step, way, wire), _HOW)


def _sums(step: Step, way: str, wire: str) -> None:
    drivers = [card.driver for card in open_cards(step.emulated, 2).values()]
    check_reductions(drivers, way, wire)
    for size, seconds in time_reductions(drivers, way, SIZES[:1] if step.emulated else SIZES, wire):
        step.tell(Figure(f"sum of 2 by {way}, {wire}, {size} bytes", 1e6 * seconds, "us", how=_HOW))

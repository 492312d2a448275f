"""What users may say of how devices copy to each other, and how they sum."""

from ggrun.devices.wire import DTYPES
from ggrun.errors import UsageError

P2P = ("auto", "on", "off")
"""Copies between cards go direct where the self-test says so; everywhere; nowhere."""
ALL_REDUCE = ("auto", "nccl", "copy")
"""auto: NCCL for the sizes at which a self-test of these cards has found it right, and faster."""


def check_p2p(p2p: str) -> None:
    """UsageError for what is no such word."""
    if p2p not in P2P:
        raise UsageError(f"p2p {p2p!r:.40}: it must be one of {', '.join(P2P)}")


def check_sums(way: str, wire: str) -> None:
    """UsageError for what is no way, or cannot travel."""
    if way not in ALL_REDUCE:
        raise UsageError(f"all_reduce {way!r:.40}: it must be one of {', '.join(ALL_REDUCE)}")
    if wire not in tuple(DTYPES):
        raise UsageError(f"wire {wire!r:.40}: it must be one of {', '.join(DTYPES)}")
    if way == "nccl" and wire == "bf16":
        raise UsageError("all_reduce nccl sums float32: leave out wire bf16, which copies alone have")

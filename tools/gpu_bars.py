"""The bars that a card's figures are held against: met, not met, or not measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.gpu_step import Figure

MET, NOT_MET, NOT_MEASURED = "met", "not met", "not measured"
_SLOWER = 0.8
"""What is bound by the disk or the bus has this much of the slower one's rate; the bar names no number."""


@dataclass(frozen=True)
class Bar:
    """What is asked for. figure: the name of what it is about; at_least: a share, or at_most: a loss."""

    title: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, found: float) -> bool:
        """Whether a value is good enough; NaN is not."""
        return found >= self.at_least if self.at_least is not None else found <= (self.at_most or 0.0)


@dataclass(frozen=True)
class Verdict:
    """A bar, what was found, and the word."""

    title: str
    found: float | None
    word: str


DECODE, PREFILL, LOSS, LOADED = "decode", "prefill of 2048", "loss of two logical devices", "load, cold"
"""How the figures begin, or what they are called, that bars are about."""

BARS = (
    Bar("decode of 8B Q4_K_M: 70 % of the copy bandwidth", f"{DECODE}, 8B Q4_K_M", 0.70),
    Bar("decode of 70B Q4_K_M: 80 % of the copy bandwidth", f"{DECODE}, 70B Q4_K_M", 0.80),
    Bar("decode of 8B Q8_0: 85 % of the copy bandwidth", f"{DECODE}, 8B Q8_0", 0.85),
    Bar("prefill of 2048 tokens on 8B: 45 % of the bf16 matrix rate", f"{PREFILL}, 8B Q4_K_M", 0.45),
    Bar("two logical devices by layer lose at most 3 %, decode", f"{LOSS}, {DECODE}", at_most=0.03),
    Bar("two logical devices by layer lose at most 3 %, prefill", f"{LOSS}, {PREFILL}", at_most=0.03),
    Bar(f"loading is bound by the disk or the bus: {_SLOWER:.0%} of the slower one", LOADED, _SLOWER),
)


def verdicts(figures: Sequence[Figure], emulated: bool) -> list[Verdict]:
    """Every bar; an emulated card meets none."""
    if emulated:
        return [Verdict(bar.title, None, NOT_MEASURED) for bar in BARS]
    return [_verdict(bar, [f for f in figures if f.what.startswith(bar.figure)]) for bar in BARS]


def _verdict(bar: Bar, figures: list[Figure]) -> Verdict:
    found = [f.share for f in figures if f.share is not None and not f.error]
    if not found:
        return Verdict(bar.title, None, NOT_MEASURED)
    value = max(found)  # one setting that reaches a share is enough; a loss is to be small in all
    return Verdict(bar.title, value, MET if bar.met(value) else NOT_MET)

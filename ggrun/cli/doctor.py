"""ggrun doctor: one page on this machine: what there is, what is broken, what to install or to change."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ggrun.cli.flags import Command, option
from ggrun.cli.terminal import printable

if TYPE_CHECKING:
    from ggrun.cli.checkup import Checkup

_MARGIN = 10  # columns of the subjects


@click.command(cls=Command)
@option("--p2p", default="auto", type=click.Choice(["auto", "on", "off"]),
        help="Which copies between cards you want: see ggrun run -h.")  # fmt: skip
@option("--json", "as_json", is_flag=True, help="The same as JSON.")
def doctor(p2p: str, as_json: bool) -> int:
    """Look this machine over: what ggrun finds, what is broken, what to install or to change.

    Copies between cards, and sums over them, are tested anew; what comes of that is kept for --p2p auto and
    --all-reduce auto. Exit status 1: what is installed or asked for does not work.
    """
    from ggrun.cli.checkup import check_up

    found = check_up(p2p)
    if as_json:
        print(json.dumps({**found.facts, "broken": found.broken, "advice": found.advice}, indent=2))
    else:
        print(printable("\n".join(_page(found))))
    return 1 if found.broken else 0


def _page(found: "Checkup") -> Iterator[str]:
    facts = found.facts
    yield from _block("versions", [_words(facts["versions"])])
    yield from _block("CUDA", [_words(facts["cuda"])] if facts["cuda"] else [])
    yield from _block("CPU", _cpu(facts["cpu"]))
    memory = facts["memory"]
    yield from _block("memory", [f"{_gib(memory['total'])}, {_gib(memory['available'])} free"])
    yield from _block("cards", [_card(card) for card in facts["cards"]] or ["none"])
    yield from _block("links", [_link(link) for link in facts["links"]])
    yield from _block("sums", [_sum(sums) for sums in facts["sums"]])
    cache = facts["cache"]
    yield from _block("cache", [f"{cache['folder']}, {cache['bytes'] / 2**20:.1f} MiB"])
    yield from _block("broken", found.broken)
    yield from _block("advice", found.advice)
    if not found.broken:
        yield "\nall is well"


def _block(subject: str, lines: list[str]) -> Iterator[str]:
    """Lines behind a subject, which stands beside the first."""
    for i, line in enumerate(lines):
        yield f"{subject if i == 0 else '':<{_MARGIN}}{line}"


def _words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in versions.items())


def _cpu(cpu: dict[str, Any]) -> list[str]:
    lines = [f"{cpu['name']}, {cpu['cores']} cores: {' '.join(cpu['features'])}"]
    if "kernels" in cpu:
        speeds = (
            f"{cpu['bandwidth'] / 1e9:.1f} GB/s, {cpu['operations'] / 1e9:.0f} billion operations a second"
        )
        lines.append(f"kernels for {cpu['kernels']}: {speeds}")
    return lines


def _card(card: dict[str, Any]) -> str:
    if "label" not in card:
        return str(card["reason"])
    free = f" ({_gib(card['free'])} free)" if "free" in card else ""
    what = f"{card['label']}, {_gib(card['memory'])}{free}, compute capability {card['capability']}"
    return f"{card['name']}: {what}" + ("" if card["usable"] else f"; cannot be used: {card['reason']}")


def _link(link: dict[str, Any]) -> str:
    how = "direct" if link["direct"] else "through the host's memory"
    speed = "not measured"
    if link["bandwidth"]:
        speed = f"{link['bandwidth'] / 1e9:.1f} GB/s, {link['latency'] * 1e6:.1f} us"
    why = f" ({link['reason']})" if link["reason"] else ""
    return f"{link['from']} to {link['to']}: {how}, {speed}{why}"


def _sum(sums: dict[str, Any]) -> str:
    found = [f"{sums[way] * 1e6:.1f} us by {way}" for way in ("copies", "NCCL") if sums[way] is not None]
    return f"of {sums['bytes'] / 1024:g} KiB a card: {', '.join(found)}"


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"

"""The cards of this machine as a planner sees them; speeds are measured once and kept."""

from collections.abc import Iterable
from contextlib import closing, suppress

from ggrun.devices import open_devices
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.links import known_pairs, pairs_of
from ggrun.devices.cuda.switch_over import keep_gemm, kept_gemm, measured_gemm
from ggrun.devices.kept import tell
from ggrun.devices.speeds import card_key, forget, keep, kept, measured_card
from ggrun.errors import GgrunError
from ggrun.plan.hardware import DeviceInfo, Link, Speeds, card_info


def peers_of(cards: Iterable[int], p2p: str) -> dict[str, tuple[tuple[str, Link], ...]]:
    """How each card, by its name, reaches which others, as `p2p` chooses; what is not known may be tested."""
    cards, peers = set(cards), dict[str, tuple[tuple[str, Link], ...]]()
    for (one, other), pair in (pairs_of(cards) if p2p == "auto" else known_pairs(cards)).items():
        for giver, taker, back in ((one, other, False), (other, one, True)):
            known = peers.get(f"cuda:{giver}", ())
            peers[f"cuda:{giver}"] = (*known, (f"cuda:{taker}", pair.link(p2p, back)))
    return peers


def local_card(index: int) -> DeviceInfo:
    """A card of this machine. Its speeds are measured once, which takes some seconds."""
    name = f"cuda:{index}"
    with closing(open_devices([name])[name]) as device:
        assert isinstance(device, Cuda)
        free, total = device.driver.free_memory()
        return card_info(name, device.driver.name, total, free, _card_speeds(device, index))


def _card_speeds(device: Cuda, index: int) -> Speeds:
    driver, key = device.driver, card_key(device.driver.name, index)
    gemm_unknown = kept_gemm(driver) is None and driver.has_gemm
    if gemm_unknown or kept(key) is None:
        tell(f"measuring how fast {device.name} is ({driver.name}): once, some seconds")
    if gemm_unknown:
        with suppress(GgrunError):  # what fails here is not taken
            device.gemm_from = measured_gemm(device)
            keep_gemm(driver, device.gemm_from)
            forget(key)  # the rates of prompts are others with it
    if (speeds := kept(key)) is None:
        speeds = measured_card(device)
        keep(key, speeds)
    return speeds

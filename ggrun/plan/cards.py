"""Well-known graphics cards: memory, its bandwidth, arithmetic, and the link to the host.

Sources: NVIDIA's data sheets and architecture white papers (Pascal GP100/GP104, Turing TU102, Ampere GA102,
Ada AD102, Blackwell RTX, A100, H100), the compare page nvidia.com/geforce/graphics-cards/compare, and
techpowerup.com/gpu-specs for what they leave out. The arithmetic is that of dense int8 products: tensor cores
where there are any, the dot product of bytes (dp4a) on Pascal.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A graphics card."""

    label: str
    memory: float  # GiB
    bandwidth: float  # GB/s
    int8: float  # 10^12 operations a second, dense
    pcie: int  # generation
    lanes: int = 16


# fmt: off
_TABLE = (
    Card("GTX 1060", 6, 192, 17, 3), Card("GTX 1070", 8, 256, 26, 3), Card("GTX 1070 Ti", 8, 256, 33, 3),
    Card("GTX 1080", 8, 320, 35, 3), Card("GTX 1080 Ti", 11, 484, 45, 3),
    Card("GTX 1650", 4, 128, 12, 3), Card("GTX 1660", 6, 192, 20, 3), Card("GTX 1660 Ti", 6, 288, 22, 3),
    Card("RTX 2060", 6, 336, 103, 3), Card("RTX 2060 12GB", 12, 336, 115, 3),
    Card("RTX 2070", 8, 448, 119, 3), Card("RTX 2070 Super", 8, 448, 145, 3),
    Card("RTX 2080", 8, 448, 161, 3), Card("RTX 2080 Super", 8, 496, 178, 3),
    Card("RTX 2080 Ti", 11, 616, 215, 3), Card("Titan RTX", 24, 672, 261, 3),
    Card("RTX 3050", 8, 224, 73, 4, 8), Card("RTX 3060", 12, 360, 102, 4),
    Card("RTX 3060 Ti", 8, 448, 130, 4), Card("RTX 3070", 8, 448, 163, 4),
    Card("RTX 3070 Ti", 8, 608, 174, 4), Card("RTX 3080", 10, 760, 238, 4),
    Card("RTX 3080 12GB", 12, 912, 245, 4), Card("RTX 3080 Ti", 12, 912, 273, 4),
    Card("RTX 3090", 24, 936, 284, 4), Card("RTX 3090 Ti", 24, 1008, 320, 4),
    Card("RTX 4060", 8, 272, 242, 4, 8), Card("RTX 4060 Ti", 8, 288, 353, 4, 8),
    Card("RTX 4060 Ti 16GB", 16, 288, 353, 4, 8), Card("RTX 4070", 12, 504, 233, 4),
    Card("RTX 4070 Super", 12, 504, 284, 4), Card("RTX 4070 Ti", 12, 504, 321, 4),
    Card("RTX 4070 Ti Super", 16, 672, 353, 4), Card("RTX 4080", 16, 717, 390, 4),
    Card("RTX 4080 Super", 16, 736, 418, 4), Card("RTX 4090", 24, 1008, 661, 4),
    Card("RTX 5060", 8, 448, 307, 5, 8), Card("RTX 5060 Ti", 8, 448, 380, 5, 8),
    Card("RTX 5060 Ti 16GB", 16, 448, 380, 5, 8), Card("RTX 5070", 12, 672, 494, 5),
    Card("RTX 5070 Ti", 16, 896, 703, 5), Card("RTX 5080", 16, 960, 900, 5),
    Card("RTX 5090", 32, 1792, 838, 5), Card("P40", 24, 347, 47, 3), Card("P100", 16, 732, 21, 3),
    Card("V100", 16, 900, 63, 3), Card("V100 32GB", 32, 900, 63, 3), Card("T4", 16, 320, 130, 3),
    Card("A2", 16, 200, 36, 4, 8), Card("A10", 24, 600, 250, 4), Card("A16", 16, 200, 36, 4),
    Card("A30", 24, 933, 330, 4), Card("A40", 48, 696, 299, 4), Card("RTX A2000", 12, 288, 64, 4),
    Card("RTX A4000", 16, 448, 153, 4), Card("RTX A5000", 24, 768, 222, 4),
    Card("RTX A6000", 48, 768, 310, 4), Card("A100", 40, 1555, 624, 4),
    Card("A100 80GB", 80, 1935, 624, 4), Card("L4", 24, 300, 242, 4), Card("L40", 48, 864, 362, 4),
    Card("L40S", 48, 864, 733, 4), Card("RTX 4000 Ada", 20, 360, 214, 4),
    Card("RTX 6000 Ada", 48, 960, 728, 4), Card("RTX PRO 6000", 96, 1792, 1000, 5),
    Card("H100", 80, 3350, 1979, 5), Card("H100 PCIe", 80, 2039, 1513, 5),
    Card("H200", 141, 4800, 1979, 5), Card("B200", 180, 8000, 4500, 5),
)
# fmt: on


def key(name: str) -> str:
    """A card's name as it is looked up: "RTX 4060 Ti 16GB" and "rtx4060ti-16gb" are one."""
    letters = "".join(c for c in name.lower() if c.isalnum())
    for brand in ("nvidia", "geforce", "tesla"):
        letters = letters.removeprefix(brand)
    return letters


CARDS = {key(card.label): card for card in _TABLE}
"""The cards by their keys."""

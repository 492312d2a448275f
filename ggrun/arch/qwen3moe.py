"""Qwen 3 with experts."""

from ggrun.arch import Arch

ARCH = Arch("qwen3moe")

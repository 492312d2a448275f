"""Qwen 3: norms on the heads of query and key."""

from ggrun.arch import Arch

ARCH = Arch("qwen3")

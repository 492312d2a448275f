"""Mistral 3 and Ministral 3: Llama with queries that grow with the position."""

from ggrun.arch import Arch

ARCH = Arch("mistral3", rope_neighbours=True)

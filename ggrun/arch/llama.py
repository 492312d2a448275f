"""Llama 1 to 3, Mistral, Mixtral, TinyLlama and all that is converted as "llama"."""

from ggrun.arch import Arch

ARCH = Arch("llama", rope_neighbours=True)

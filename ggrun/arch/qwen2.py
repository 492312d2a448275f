"""Qwen 2 and 2.5: biases on query, key and value."""

from ggrun.arch import Arch

# llama.cpp reads ffn_*.scale and does not use it for this architecture.
ARCH = Arch("qwen2", ffn_scale=False)

"""Workers on other machines: stages of a plan that run there, over gRPC."""

PROTOCOL = 3
"""Counts up when an older side would not understand a newer one."""

PORT = 50052
"""Where a worker listens, as llama.cpp's does."""

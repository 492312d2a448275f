"""The engine: weights, KV cache, one member's runner, the pipeline that walks a plan, sampling and
generation."""

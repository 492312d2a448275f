"""The engine: weights, KV cache, runners, the pipeline that walks a plan, sampling, generation."""

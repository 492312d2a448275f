"""How much there is to compute in a model: what rates are measured by."""

from ggrun.plan.shapes import Shape, slots

_NOT_FOR_EACH_TOKEN = ("embedding", "output")


def prefill_operations(shape: Shape, tokens: int) -> int:
    """Multiplications and additions of a prompt: products of all layers, causal attention, one output."""
    matrices = [slot for slot in slots(shape) if len(slot.shape) > 1]
    layers = sum(_size(slot.shape) for slot in matrices if slot.role not in _NOT_FOR_EACH_TOKEN)
    pairs = tokens * (tokens + 1) // 2
    attention = 4 * shape.layers * shape.heads * shape.head_dim * pairs
    return 2 * tokens * layers + attention + 2 * shape.width * shape.vocab


def _size(shape: tuple[int, ...]) -> int:
    rows, columns = shape[:2]
    return rows * columns  # experts: one is for each token of it, and none is measured here

"""What comes with ggrun: the demo model, beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

_HERE = Path(__file__).parent


def demo_model() -> Path:
    """The model that tells fairy tales."""
    inside = _HERE / "models"
    return (inside if inside.is_dir() else _HERE.parent / "models") / "fairy-tales-q8_0.gguf"

"""How long checks of the self-test may take, in tests."""

import pytest

from ggrun.devices.cuda import selftest


def limit_checks(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let each take so long, and the start of its process all the time in the world."""
    patch.setattr(selftest, "START", 60.0)
    for name, kind in selftest.CHECKS.items():
        patch.setitem(selftest.CHECKS, name, kind._replace(limit=seconds))

"""How long checks of the self-test may take, in tests."""

import pytest

from ggrun.devices.cuda import selftest


def limit_checks(patch: pytest.MonkeyPatch, seconds: float, *names: str) -> None:
    """Let those of these names, or all, take so long; their process may take long to start."""
    patch.setattr(selftest, "LONGEST", 1000.0)
    patch.setattr(selftest, "START", 60.0)
    for name in names or tuple(selftest.CHECKS):
        patch.setitem(selftest.CHECKS, name, selftest.CHECKS[name]._replace(limit=seconds))

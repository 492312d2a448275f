"""ggrun on a machine whose cards are emulated: a process for tests."""

import sys

from ggrun.cli import main
from ggrun.devices.cuda import local
from ggrun.plan.hardware import Speeds
from tests.cuda.fake_cupy import FakeCupy

sys.modules["cupy"] = FakeCupy()  # type: ignore[assignment]
# To measure an emulated card takes minutes.
local._card_speeds = lambda *_: Speeds(1e12, 1e13, 1e13, 1e10)  # type: ignore[assignment]
main()

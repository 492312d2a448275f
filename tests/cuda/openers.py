"""What the self-test's process opens in tests, in place of real cards: emulated ones with faults."""

import os
import signal
import time
from pathlib import Path

from ggrun.devices.cuda import copies, sum_checks
from ggrun.devices.cuda.driver import Driver, OutOfMemory
from ggrun.devices.late import Schedule
from ggrun.errors import GgrunError
from tools.cuda_emulator.driver import EmulatedDriver, Peers
from tools.cuda_emulator.kernels import runtime
from tools.cuda_emulator.memory import Memory

runtime()  # now, and not in the time of the first check: it may have to be compiled
_SCHEDULE = Schedule(1)
# Fewer and smaller copies and sums, so that a check that passes is far from its limit on a busy machine.
copies._ROOM, copies._SIZES, copies._ROUNDS = 1 << 20, (4096, 100_004, 1 << 20), 2
sum_checks.SIZES, sum_checks._CHECKED, sum_checks._WIDTH = (4096, 8192), (1, 7), 64


def works(number: int, peers: Peers = Peers.WORK) -> EmulatedDriver:
    return EmulatedDriver(schedule=_SCHEDULE, name=f"cuda:{number}", peers=peers)


def without_peer_access(number: int) -> EmulatedDriver:
    return works(number, Peers.NONE)


def corrupts(number: int) -> EmulatedDriver:
    return works(number, Peers.CORRUPT)


def hangs(number: int) -> EmulatedDriver:
    return works(number, Peers.HANG)


def tells_its_pid_and_hangs(number: int) -> EmulatedDriver:
    Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))
    return hangs(number)


def third_hangs(number: int) -> EmulatedDriver:
    return works(number, Peers.HANG if number == 2 else Peers.WORK)


def does_not_start(number: int) -> EmulatedDriver:
    raise GgrunError(f"cuda:{number}: no\nsuch card")


def starts_never(number: int) -> EmulatedDriver:
    time.sleep(60)
    raise AssertionError


class _Dies(EmulatedDriver):
    def reach(self, card: Driver) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def dies(number: int) -> EmulatedDriver:
    return _Dies(schedule=_SCHEDULE, name=f"cuda:{number}")


class _Sleeps(EmulatedDriver):
    def reach(self, card: Driver) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(60)


def sleeps(number: int) -> EmulatedDriver:
    """In a call that nothing ends but SIGKILL."""
    return _Sleeps(schedule=_SCHEDULE, name=f"cuda:{number}")


class _Talks(EmulatedDriver):
    def reach(self, card: Driver) -> None:
        print('{"result": "a library prints this"}', flush=True)
        os.write(1, b"and this\n")
        super().reach(card)


def talks(number: int) -> EmulatedDriver:
    return _Talks(schedule=_SCHEDULE, name=f"cuda:{number}")


class _Full(EmulatedDriver):
    def __init__(self, number: int) -> None:
        super().__init__(limit=1 << 20, schedule=_SCHEDULE, name=f"cuda:{number}")


def full(number: int) -> EmulatedDriver:
    return _Full(number)


class _Unpinned(EmulatedDriver):
    def allocate_on_host(self, nbytes: int) -> Memory:
        raise OutOfMemory(f"{self.name}: {nbytes} bytes of pinned memory: out of memory")


def without_pinned_memory(number: int) -> EmulatedDriver:
    return _Unpinned(schedule=_SCHEDULE, name=f"cuda:{number}")


class _Raises(EmulatedDriver):
    def reach(self, card: Driver) -> None:
        raise RuntimeError("cudaErrorIllegalAddress:\n" + "x" * 1000)


def raises(number: int) -> EmulatedDriver:
    return _Raises(schedule=_SCHEDULE, name=f"cuda:{number}")


class _Loses(EmulatedDriver):
    def receive(self, target: int, source: int, nbytes: int) -> None:
        """Of what comes, the last bytes do not."""
        super().receive(target, source, nbytes - 4)


def loses_bytes(number: int) -> EmulatedDriver:
    return _Loses(schedule=_SCHEDULE, name=f"cuda:{number}")


class _Stuck(EmulatedDriver):
    def receive(self, target: int, source: int, nbytes: int) -> None:
        time.sleep(60)


def never_receives(number: int) -> EmulatedDriver:
    return _Stuck(schedule=_SCHEDULE, name=f"cuda:{number}")

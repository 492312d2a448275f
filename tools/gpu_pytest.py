"""A plugin of pytest for gpu_tests.py: runs a part of the tests, and writes down each as soon as it is done.

A test after which the card is of no use to this process any more ends it; the next one goes on behind it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

BROKEN = 77
"""The exit status of a process that lost its card."""
_LOST = re.compile(
    r"cudaError(IllegalAddress|LaunchFailure|LaunchTimeout|MisalignedAddress|IllegalInstruction|Assert|"
    r"HardwareStackError|InvalidPc|InvalidAddressSpace|ECCUncorrectable)"
    r"|CUDA_ERROR_(ILLEGAL_ADDRESS|LAUNCH_FAILED)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu check")
    group.addoption("--part", help="I/N: the tests I, I + N, I + 2 N and so on")
    group.addoption("--results", help="the file that all is appended to; tests that it has are left out")


@pytest.hookimpl(trylast=True)  # what -k and -m leave out does not count
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("results"):
        return
    part, of = map(int, config.getoption("part").split("/"))
    mine = items[part::of]
    _write(config, {"collected": len(mine)})
    begun = {record["id"] for record in records(Path(config.getoption("results"))) if "id" in record}
    items[:] = [item for item in mine if item.nodeid not in begun]


class _Writer:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _write(self._config, {"id": nodeid, "outcome": "begun"})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        said = _line(report)
        record = {"id": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "line": said}
        _write(self._config, record)
        if report.outcome == "failed" and _LOST.search(str(report.longrepr)):
            os._exit(BROKEN)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("results"):
        config.pluginmanager.register(_Writer(config))


def records(results: Path) -> list[dict[str, Any]]:
    """All that was written; a line that was cut off by the end of its process is left out."""
    found = []
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _write(config: pytest.Config, record: dict[str, Any]) -> None:
    with Path(config.getoption("results")).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _line(report: pytest.TestReport) -> str:
    """What pytest has in its summary, and where: the error's first line, or why a test was skipped."""
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = f"{Path(crash.path).name}:{crash.lineno}: {crash.message}" if crash else str(report.longrepr)
    return " ".join(text.split())[:300]

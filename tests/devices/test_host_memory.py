"""What containers leave of the machine's memory, in both versions of control groups."""

from pathlib import Path

import psutil

from ggrun.devices.host_memory import host_memory

GIB = 1 << 30


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_a_machine_without_groups(tmp_path: Path) -> None:
    found = host_memory(tmp_path / "none", tmp_path)
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.available <= found.total


def test_the_least_of_all_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    group(tmp_path / "a", memory_max=f"{GIB}\n", memory_current=f"{GIB // 2}\n", memory_stat="file 1000\n")
    group(tmp_path / "a/b", memory_max="max\n", memory_current="5\n", memory_stat="file 0\n")
    found = host_memory(tmp_path / "cgroup", tmp_path)
    assert (found.total, found.available) == (GIB, GIB - GIB // 2 + 1000)


def test_the_first_version(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("3:cpu,cpuacct:/x\n5:memory:/x\n")
    group(
        tmp_path / "memory/x",
        memory_limit_in_bytes=str(GIB), memory_usage_in_bytes=str(GIB + 5), memory_stat="total_cache 1\n",
    )  # fmt: skip
    assert host_memory(tmp_path / "cgroup", tmp_path).available == 0


def test_what_makes_no_sense_is_no_limit(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/x\n")
    group(tmp_path / "x", memory_max="nonsense", memory_current="1", memory_stat="file 0")
    assert host_memory(tmp_path / "cgroup", tmp_path).total == psutil.virtual_memory().total

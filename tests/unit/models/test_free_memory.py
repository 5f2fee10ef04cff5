"""The memory that is free: of the machine, and of control groups of both versions, up to the root."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from modelyard.models.memory import free_memory

GB = 1_000_000_000


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    write(tmp_path / "proc" / "meminfo", "MemTotal: 16000000 kB\nMemAvailable:    8000000 kB\n")
    return tmp_path / "proc"


def group(folder: Path, limit: str, usage: int, inactive: int = 0) -> None:
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{usage}\n")
    write(folder / "memory.stat", f"anon 5\ninactive_file {inactive}\n")


def test_without_limits_it_is_what_the_machine_has(proc, tmp_path):
    assert free_memory(proc, tmp_path / "none") == 8_000_000 * 1024
    write(proc / "self" / "cgroup", "0::/user.slice\n")
    group(tmp_path / "cgroup" / "user.slice", "max", GB)
    assert free_memory(proc, tmp_path / "cgroup") == 8_000_000 * 1024


def test_a_group_counts_without_the_files_that_it_can_drop(proc, tmp_path):
    write(proc / "self" / "cgroup", "0::/pod/container\n")
    group(tmp_path / "cgroup" / "pod" / "container", str(4 * GB), 3 * GB, inactive=GB)
    assert free_memory(proc, tmp_path / "cgroup") == 2 * GB


def test_the_groups_above_count_too(proc, tmp_path):
    write(proc / "self" / "cgroup", "0::/pod/container\n")
    group(tmp_path / "cgroup" / "pod" / "container", str(4 * GB), GB)
    group(tmp_path / "cgroup" / "pod", str(2 * GB), 3 * GB)
    assert free_memory(proc, tmp_path / "cgroup") == 0


def test_the_first_version_of_groups(proc, tmp_path):
    write(proc / "self" / "cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n")
    folder = tmp_path / "cgroup" / "memory" / "docker" / "x"
    write(folder / "memory.limit_in_bytes", f"{3 * GB}\n")
    write(folder / "memory.usage_in_bytes", f"{2 * GB}\n")
    write(folder / "memory.stat", "inactive_file 7\ntotal_inactive_file 500000000\n")
    write(folder.parent / "memory.limit_in_bytes", "9223372036854771712\n")
    write(folder.parent / "memory.usage_in_bytes", f"{2 * GB}\n")
    assert free_memory(proc, tmp_path / "cgroup") == GB + GB // 2


def test_where_the_system_does_not_tell_there_is_no_limit(tmp_path):
    assert free_memory(tmp_path, tmp_path) == math.inf
    assert 0 < free_memory() < math.inf

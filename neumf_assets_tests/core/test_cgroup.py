"""Limits of control groups: of one's own group and those around it, in both layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from neumf_assets.core import cgroup

UNIT = "0::/system.slice/neumf-code.service"
HYBRID = "4:memory:/lab/one\n2:cpu,cpuacct:/lab/one\n0::/"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "groups")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    return tmp_path / "groups"


def _write(tree: Path, own: str, **files: str) -> None:
    tree.with_name("own").write_text(own + "\n")
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.mark.parametrize(
    ("own", "files", "processors", "memory"),
    [
        ("0::/", {}, None, None),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ("0::/", {"cpu.max": "250000 100000", "memory.max": "4096"}, 2.5, 4096),
        (UNIT, {"system.slice/neumf-code.service/cpu.max": "300000 100000"}, 3.0, None),
        (UNIT, {"system.slice/cpu.max": "50000 100000", "system.slice/memory.max": "99"}, 0.5, 99),
        (UNIT, {"system.slice/memory.max": "7", "system.slice/neumf-code.service/memory.max": "9"}, None, 7),
        ("0::/../on/the/host", {"cpu.max": "100000 100000"}, 1.0, None),
        (HYBRID, {"cpu/lab/cpu.cfs_quota_us": "400000", "cpu/lab/cpu.cfs_period_us": "100000"}, 4.0, None),
        (HYBRID, {"cpu/lab/one/cpu.cfs_quota_us": "-1", "cpu/lab/one/cpu.cfs_period_us": "1"}, None, None),
        (HYBRID, {"memory/lab/one/memory.limit_in_bytes": "123"}, None, 123),
    ],
)
def test_the_lowest_limit_of_a_group_and_those_around_it_counts(
    tree: Path, own: str, files: dict[str, str], processors: float | None, memory: int | None
) -> None:
    _write(tree, own, **files)
    assert cgroup.cpu_quota() == processors
    assert cgroup.memory_limit() == memory


def test_where_there_are_no_groups_nothing_limits(tree: Path) -> None:
    assert cgroup.cpu_quota() is None
    assert cgroup.memory_limit() is None


@pytest.mark.parametrize(("quota", "usable"), [("20000", 1), ("350000", 3), ("9900000", 8)])
def test_steps_at_a_time_follow_the_quota_and_not_the_hosts_cores(
    tree: Path, monkeypatch: pytest.MonkeyPatch, quota: str, usable: int
) -> None:
    monkeypatch.setattr(cgroup.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cgroup.usable_cpus() == 8
    _write(tree, UNIT, **{"system.slice/neumf-code.service/cpu.max": f"{quota} 100000"})
    assert cgroup.usable_cpus() == usable

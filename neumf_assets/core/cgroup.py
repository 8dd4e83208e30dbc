"""What control groups leave to this process: those of a container, of a systemd unit, of a batch system.

A limit may be set on the group that the process is in or on any group around it, and the lowest counts. Both
layouts are read: version 2 with one tree for everything, version 1 with a tree for each controller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cpu_quota() -> float | None:
    """Processors' worth of time, or None where nothing limits it."""
    quotas = []
    for folder in _groups("cpu"):
        limit, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        limit = limit or _read(folder / "cpu.cfs_quota_us") or ""
        period = period or _read(folder / "cpu.cfs_period_us") or ""
        if limit.isdigit() and period.isdigit():
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def usable_cpus() -> int:
    """Processors that this process may use: its affinity, cut by its control groups' quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else min(count, max(1, int(quota)))


def memory_limit() -> int | None:
    """Bytes, or None where nothing limits them."""
    found = (
        _read(folder / name)
        for folder in _groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    )
    return min((int(text) for text in found if text and text.isdigit()), default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's groups, each with those around it.

    Inside a container the path may be that on the host, of which only the root is to be seen.
    """
    for line in (_read(OWN) or "0::/").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = ROOT / controller if controllers else ROOT
        inner = root / path.lstrip("/")
        yield inner
        yield from (folder for folder in inner.parents if folder.is_relative_to(root))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None

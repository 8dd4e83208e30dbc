"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Wall seconds and the process's peak resident memory, MiB (the peak is filled in at the end)."""

    seconds: float = 0.0
    peak_mib: float = 0.0


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Measure the body: wall seconds, and the peak resident memory of this process while it ran.

    On Linux the kernel's high-water mark is reset first; elsewhere the mark of the process's whole life is
    what can be told.
    """
    cost = Cost()
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        cost.peak_mib = _peak_mib()


def _peak_mib() -> float:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)

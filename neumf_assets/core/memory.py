"""How much memory a stage may hold: the one place that reads ``NEUMF_MEMORY``.

A stage estimates the working set of doing its work at once; where that exceeds the budget it works through
the data in parts, says so, and gives the same result. What cannot be cut into parts warns before it begins.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neumf_assets.core.cgroup import memory_limit
from neumf_assets.core.errors import BadSettings

VARIABLE = "NEUMF_MEMORY"
SHARE = 0.5
"""Part of the machine's memory that is used where nothing is set: runs may go side by side."""
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_LEAST = 256 << 20
_MEMINFO = Path("/proc/meminfo")
_log = logging.getLogger("neumf_assets")
_asked: list[int] = []


def parse_size(text: str) -> int:
    """Return the bytes that a size like ``12GiB``, ``12G`` (both 2³⁰), ``800 MB`` (10⁶) or ``4096`` means.

    Raises
    ------
    BadSettings
        If it is no size.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise BadSettings(f"{text!r} is no size of memory; write it like 12GiB or 800MB.")
    number, unit, binary = found.groups()
    decimal = bool(unit) and not binary and text.strip().upper().endswith("B")
    return int(float(number) * (1000 if decimal else 1024) ** _UNITS[unit.upper()])


def budget() -> int:
    """Return the bytes that the data of one stage may take in memory.

    That is ``NEUMF_MEMORY``, or half of what the control group or the machine has, or of what was asked for
    (:func:`asked_for`) where that is less.

    Raises
    ------
    BadSettings
        If ``NEUMF_MEMORY`` is no size, or less than 256 MiB.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return max(_LEAST, int(SHARE * min([available(), *_asked])))
    try:
        size = parse_size(text)
    except BadSettings as error:
        raise BadSettings(f"{VARIABLE}: {error}") from None
    if size < _LEAST:
        raise BadSettings(f"{VARIABLE} is {text!r}, too little to work with; give at least 256MiB.")
    return size


@contextmanager
def asked_for(size: int) -> Iterator[None]:
    """Work with no more than this in the body where ``NEUMF_MEMORY`` is not set: a cluster gave no more.

    On a machine that others use too, what it has is not what this process may take.
    """
    _asked.append(size)
    try:
        yield
    finally:
        _asked.remove(size)


def available() -> int:
    """Return the bytes of memory of the control group or, if that sets no lower limit, of the machine."""
    limits = [_LEAST]
    if _MEMINFO.exists():
        limits = [int(_MEMINFO.read_text().split("MemTotal:")[1].split()[0]) * 1024]
    elif hasattr(os, "sysconf"):
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if (limit := memory_limit()) is not None:
        limits.append(limit)
    return min(limits)


def exceeds(needed: int, what: str, instead: str) -> bool:
    """Tell whether a working set exceeds the budget, and log what is done instead where it does.

    Parameters
    ----------
    needed
        Bytes of the working set.
    what, instead
        The work, and the other way of doing it, for the log.
    """
    return _told(logging.INFO, needed, what, instead)


def warn_if_exceeds(needed: int, what: str, mend: str) -> bool:
    """Tell whether a working set that cannot be cut into parts exceeds the budget, and warn before work begins.

    Parameters
    ----------
    needed
        Bytes of the working set.
    what, mend
        The work, and the setting or the other way that would help, for the log.
    """
    return _told(logging.WARNING, needed, what, f"it is done at once all the same. {mend}")


def _told(level: int, needed: int, what: str, how: str) -> bool:
    allowed = budget()
    if needed <= allowed:
        return False
    text = "%s would take about %s of memory, more than the %s it may (%s): %s"
    source = f"half of what it asks for in requests, or {VARIABLE}" if _asked else VARIABLE
    _log.log(level, text, what, readable(needed), readable(allowed), source, how)
    return True


def readable(size: int) -> str:
    """Return a size as a person writes it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"

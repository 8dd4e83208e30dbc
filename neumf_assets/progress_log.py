"""Progress of long work, in Dagster's run log and, where somebody watches, live in the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from neumf_assets.core.progress import Progress

_LOG_EVERY_SECONDS = 5.0
_listener: ContextVar[Progress | None] = ContextVar("progress_listener", default=None)


@contextlib.contextmanager
def listening(listener: Progress) -> Iterator[None]:
    """Send all progress of the body to ``listener`` as well (the terminal's display)."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def log_progress(log: Any) -> Progress:
    """A progress callback that writes a line to the run log every few seconds, and at the end of a stage.

    An event costs 30 to 50 ms on SQLite, so not every unit of work gets one.
    """
    last = {"time": time.monotonic()}

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        listener = _listener.get()
        if listener is not None:
            listener(stage, done, total, **figures)
        now = time.monotonic()
        if now - last["time"] >= _LOG_EVERY_SECONDS or done == total:
            last["time"] = now
            log.info(describe(stage, done, total, **figures))

    return report


def describe(stage: str, done: int, total: int, **figures: float) -> str:
    """One line of progress: ``training 12/40: loss 0.181, pairs_per_second 1.2e+07``."""
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f"{stage} {done}/{total}{': ' + numbers if numbers else ''}"

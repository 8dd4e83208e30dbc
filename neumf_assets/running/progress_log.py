"""Progress of long work and what it says, in Dagster's run log and, where somebody watches, in the terminal."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

from neumf_assets.core.progress import Progress

_LOG_EVERY_SECONDS = 5.0


class Watcher(Progress, Protocol):
    """Somebody who watches: is called with all progress, and told when assets begin and end."""

    def asset_begins(self, asset: str) -> None:
        """An asset is being made."""

    def asset_ends(self, asset: str, seconds: float, done: bool) -> None:
        """It is stored; or, where ``done`` is false, it failed."""


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` (the terminal's display) of all assets and all progress of the body as well."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextlib.contextmanager
def making(asset: str) -> Iterator[None]:
    """Tell who watches that the body makes an asset."""
    watcher, start, done = _watcher.get(), time.monotonic(), False
    if watcher is not None:
        watcher.asset_begins(asset)
    try:
        yield
        done = True
    finally:
        if watcher is not None:
            watcher.asset_ends(asset, time.monotonic() - start, done)


@contextlib.contextmanager
def heard(say: Callable[[int, str], object]) -> Iterator[None]:
    """Pass on what the package says while the body runs, as that a stage works from disk.

    It knows nothing of Dagster and says so to the logger ``neumf_assets``, which nobody would hear.

    Parameters
    ----------
    say
        Is given the level (of :mod:`logging`) and the text of every message of this thread from INFO on.
    """
    logger, handler = logging.getLogger("neumf_assets"), _Passing(say)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Passing(logging.Handler):
    def __init__(self, say: Callable[[int, str], object]) -> None:
        super().__init__(logging.INFO)
        self._say, self._thread = say, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._say(record.levelno, record.getMessage())


def log_progress(log: Any) -> Progress:
    """A progress callback that writes a line to the run log every few seconds, and at the end of a stage.

    An event costs 30 to 50 ms on SQLite, so not every unit of work gets one.
    """
    last = {"time": time.monotonic()}

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        watcher = _watcher.get()
        if watcher is not None:
            watcher(stage, done, total, **figures)
        now = time.monotonic()
        if now - last["time"] >= _LOG_EVERY_SECONDS or done == total:
            last["time"] = now
            log.info(describe(stage, done, total, **figures))

    return report


def describe(stage: str, done: int, total: int, **figures: float) -> str:
    """One line of progress: ``training 12/40: loss 0.181, pairs_per_second 1.2e+07``."""
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f"{stage} {done}/{total}{': ' + numbers if numbers else ''}"

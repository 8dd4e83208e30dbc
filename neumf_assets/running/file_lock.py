"""Locks that the operating system frees when their holder dies, however it dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if os.name == "posix":
    import fcntl


class FileLock:
    """An exclusive ``flock`` on a file that says who holds it.

    Only one process at a time holds the lock. It outlives neither the process nor the machine, so there is
    nothing to clean up after a kill. The file's content is for people. Where there is no ``flock`` (Windows),
    every lock is free.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, **holder: Any) -> bool:
        """Take the lock if it is free, and write down who holds it; tells whether it was taken."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _flock(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _write(descriptor, holder)
        return True

    def release(self) -> None:
        """Free the lock; the file stays, since removing it would let two processes hold "the" lock."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> Mapping[str, Any]:
        """Who holds the lock, or held it last: ``pid``, ``host``, ``since`` and what the holder added."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.path.read_text())
            return found if isinstance(found, dict) else {}
        return {}

    def held(self) -> bool:
        """Whether some process holds the lock now."""
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _flock(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def sign_of_life(path: Path, **holder: Any) -> Iterator[None]:
    """Keep a locked file at ``path`` for as long as the body runs; see :func:`is_dead`.

    The file appears under its name with the lock on it, so that no reader can see it unlocked while the body
    runs, and it is removed at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    newborn = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    lock = FileLock(newborn)
    if not lock.acquire(**holder):
        raise RuntimeError(f"{newborn} is locked by somebody else")
    try:
        newborn.rename(path)
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def is_dead(path: Path) -> bool:
    """Whether the process that gave a :func:`sign_of_life` at ``path`` died before its end."""
    return os.name == "posix" and path.exists() and not FileLock(path).held() and path.exists()


def _flock(descriptor: int) -> bool:
    if os.name != "posix":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, holder: Mapping[str, Any]) -> None:
    content = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), **holder}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(content).encode(), 0)

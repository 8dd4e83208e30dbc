"""One process at a time on a GPU, and its memory given back after each step.

Dagster's pool already hands the GPU to one step at a time, but it frees the slot when a run ends, and a step
process whose run worker was killed lives on: it would compute on the GPU beside the next step until both run
out of memory. The lock is the operating system's, so it is held exactly as long as the process lives.
"""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neumf_assets.home import Home
from neumf_assets.running.file_lock import FileLock

_POLL_SECONDS = 0.5
_SAY_EVERY_SECONDS = 60.0


@contextlib.contextmanager
def device_turn(device: str, log: Any, what: str) -> Iterator[None]:
    """Hold the device for the body; on the CPU, nothing is held.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    log
        Told who holds the device while this waits.
    what
        What the body does, for others that wait.
    """
    if device == "cpu":
        yield
        return
    with locked(lock_path(Home.from_environment(), device), log, what):
        try:
            yield
        finally:
            free_device_memory()


def lock_path(home: Home, device: str) -> Path:
    """The lock file of the GPU that this process uses; by its serial number, so whatever its index here."""
    import torch

    serial = getattr(torch.cuda.get_device_properties(torch.device(device)), "uuid", device)
    return home.locks / f"gpu-{re.sub('[^A-Za-z0-9-]', '', str(serial))}.lock"


@contextlib.contextmanager
def locked(path: Path, log: Any, what: str) -> Iterator[None]:
    """Wait for the lock at ``path``, hold it for the body, and say every minute who holds it meanwhile."""
    lock = FileLock(path)
    said = -_SAY_EVERY_SECONDS
    while not lock.acquire(what=what):
        if time.monotonic() - said >= _SAY_EVERY_SECONDS:
            said = time.monotonic()
            log.warning(describe_holder(lock))
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def describe_holder(lock: FileLock) -> str:
    """Who holds a device, since when, and what to do about it."""
    holder = lock.holder()
    minutes = (time.time() - float(holder.get("since", time.time()))) / 60
    pid = holder.get("pid", "?")
    return (
        f"Process {pid} on {holder.get('host', '?')} has held the GPU for {minutes:.0f} min "
        f"({holder.get('what', '?')}). If its run is over, it was left behind: end it with `kill {pid}`."
    )


def free_device_memory() -> None:
    """Give the GPU memory that torch keeps for later back to the driver."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        # cuBLAS keeps some 64 MiB of workspace for each stream, which the cache would not give back
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        torch.cuda.empty_cache()

"""Work that several processes share: started, followed, and started again when one of them is lost.

What they work on lies in one folder that all of them see. What they write there, their results apart, is enough
for others to go on from.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from neumf_assets.core.cgroup import usable_cpus
from neumf_assets.core.errors import NeumfError
from neumf_assets.core.progress import Progress

POLL_SECONDS = 0.1
KILLED = 137  # what a process that SIGKILL ends leaves as its status

Launch = Callable[[Path, int, Callable[[], None]], None]


def to_the_end(attempt: Callable[[], str | None], restarts: int, where: str) -> None:
    """Attempt the work until it is done: the first time, and ``restarts`` times more.

    Parameters
    ----------
    attempt
        Runs all workers, from where they were; returns why they did not come to the end, if they did not.
    where
        For the message.

    Raises
    ------
    NeumfError
        If no attempt comes to the end.
    """
    for _ in range(restarts + 1):
        failure = attempt()
        if not failure:
            return
    raise NeumfError(
        f"parallel training {where} failed in {restarts + 1} attempts, last because {failure}. "
        "Started again, it goes on from its last checkpoint."
    )


def told_by(rank: int, folder: Path) -> Progress:
    """Return what writes the first worker's progress for :class:`Follow`; the other workers' is not told."""

    def progress(stage: str, done: int, total: int, **figures: float) -> None:
        if rank == 0:
            with (folder / "progress").open("a") as lines:
                lines.write(json.dumps([stage, done, total, figures]) + "\n")

    return progress


class Follow:
    """Passes on what the first worker wrote about its progress, each line once."""

    def __init__(self, file: Path, progress: Progress) -> None:
        self.file, self.progress, self.read = file, progress, 0
        file.unlink(missing_ok=True)

    def __call__(self) -> None:
        """Pass on what is new."""
        if not self.file.exists():
            return
        with self.file.open() as lines:
            lines.seek(self.read)
            while (line := lines.readline()).endswith("\n"):
                self.read = lines.tell()
                stage, done, total, figures = json.loads(line)
                self.progress(stage, done, total, **figures)


@dataclass(frozen=True)
class LocalProcesses:
    """Runs workers as processes of this machine, over its loopback interface.

    Parameters
    ----------
    module
        Whose ``work`` they do; run as a program, given the folder, the worker's number, how many there are and
        a file to meet at, it does so.
    restarts
        How often lost workers are replaced: all are started again, from the last checkpoint.
    threads
        Threads of each (``None``: the processors shared out).
    """

    module: str
    restarts: int = 3
    threads: int | None = None

    def __call__(self, folder: Path, size: int, poll: Callable[[], None]) -> None:
        """Run all workers to the end.

        Raises
        ------
        NeumfError
            If workers fail again and again.
        """
        to_the_end(lambda: self._attempt(folder, size, poll), self.restarts, "by processes of this machine")

    def _attempt(self, folder: Path, size: int, poll: Callable[[], None]) -> str | None:
        """Run all workers; return what became of the one that failed, not of those that then missed it."""
        with tempfile.TemporaryDirectory() as meeting:
            workers, logs = [], [Path(meeting) / f"log-{rank}" for rank in range(size)]
            try:
                for rank, log in enumerate(logs):
                    workers.append(self._start(folder, rank, size, Path(meeting) / "store", log))
                # All are asked every time: while one waits for another, only the other's end tells of its loss.
                while None in (ended := [worker.poll() for worker in workers]) and not any(ended):
                    poll()
                    time.sleep(POLL_SECONDS)
                # by a signal first, if any: others fail because that one no longer answers
                failed = sorted(
                    (worker.returncode, rank) for rank, worker in enumerate(workers) if worker.returncode
                )
            finally:
                for worker in workers:
                    worker.kill()
                    worker.wait()
                    assert worker.stdin is not None
                    worker.stdin.close()
            if not failed:
                return None
            code, rank = failed[0]
            log_tail = logs[rank].read_text(errors="replace").strip().splitlines()[-1:]
            return f"worker {rank} {_ending(code)}{''.join(f' ({line})' for line in log_tail)}"

    def _start(self, folder: Path, rank: int, size: int, store: Path, log: Path) -> subprocess.Popen[bytes]:
        threads = str(self.threads or max(1, _threads_of_all() // size))
        environment = os.environ | {"OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", self.module, str(folder), str(rank), str(size), str(store)]
        with log.open("wb") as output:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
            )


def _threads_of_all() -> int:
    """Threads for all workers together: what the environment allows this process, else its processors."""
    allowed = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(allowed) if allowed.isdigit() and int(allowed) > 0 else usable_cpus()


def _ending(code: int) -> str:
    """Say how a process ended, by its return code."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL, by somebody or for want of memory)"
    return f"ended with {signal.Signals(-code).name if code < 0 else code}"


def end_after(wait: Callable[[], object]) -> None:
    """End this process when the waiting is over, whatever it is at."""

    def end() -> None:
        wait()
        os._exit(KILLED)  # at once: computing in C, it hears no signal; nor does a container's first process

    threading.Thread(target=end, name="ends-this-process", daemon=True).start()


def closing_of_input() -> None:
    """Wait for the end of the process that :class:`LocalProcesses` has started this one from."""
    while os.read(0, 1):
        pass  # nothing is ever written; the pipe closes when the other end's process ends

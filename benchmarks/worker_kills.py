"""Kills workers of parallel trainings at random moments: does every run end with the right result, once?

A small NeuMF and a small iNMF are trained by two workers: local processes, and workers on a real Ray cluster of two
nodes, all on this machine. In every run processes are killed (SIGKILL) at moments drawn uniformly over the time
that an unkilled run takes, from its start to its end: one worker, one worker and later its replacement, both at
once, or the process that leads, which calls and waits; that one is then started again. Afterwards: did the run
end, is its result that of the unkilled run, how often was it published, how many epochs were computed more than
once, and which processes and files are left over?
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import harness
from benchmarks._leading import lead
from neumf_assets_tests.ray_cluster import VARIABLES

RUNS, QUICK_RUNS = 40, 2
SHARE = 4  # every other kind of kill than that of one worker gets so many times fewer runs
MODELS = ("NeuMF", "iNMF")
ONE, TWICE, BOTH, LEADER = "one worker", "one worker, twice", "both workers", "the leading process"
_PATIENCE = 60.0  # seconds, besides ten times that of an unkilled run: what takes longer does not end
_PARTING = 20.0  # seconds for processes to end after their run
_LOOK = 0.02  # seconds between two looks at a run


@dataclass
class Tally:
    """What became of the runs of one kind."""

    runs: int = 0
    kills: int = 0
    met_none: int = 0
    before_epochs: int = 0
    among_epochs: int = 0
    after_epochs: int = 0
    ended: int = 0
    same_bit_for_bit: int = 0
    largest_difference: float = 0.0
    published_once: int = 0
    most_epochs_repeated: int = 0
    processes_left: int = 0
    files_left: int = 0
    longest_seconds: float = 0.0


class Workers:
    """Finds the worker processes of a run."""

    address: str | None = None

    def living(self, folder: Path) -> dict[int, int]:
        """Return the process id of every living worker by its number."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, IndexError, ValueError):
                command = process.cmdline()
                if process.status() != psutil.STATUS_ZOMBIE and command[3].startswith(f"{folder}/"):
                    found[int(command[4])] = process.pid
        return found


class RayCluster(Workers):
    """A Ray cluster of two nodes with one processor each, on the loopback interface."""

    def __init__(self) -> None:
        from neumf_assets_tests.ray_cluster import two_nodes

        self._running = contextlib.ExitStack()
        self._cluster = self._running.enter_context(two_nodes())
        self.address = self._cluster.address

    def living(self, folder: Path) -> dict[int, int]:
        """Return the process id of Ray Train's worker on each node."""
        found = {}
        for number, node in enumerate(self._cluster.list_all_nodes()):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any("TrainWorker" in part for part in process.cmdline()):
                        found[number] = process.pid
        return found

    def shutdown(self) -> None:
        """Stop all nodes."""
        self._running.close()


@dataclass
class Kill:
    """What is to be killed (``None``: the leading process), and when: seconds after the start."""

    seconds: float
    ranks: tuple[int, ...] | None


@dataclass
class Run:
    """One training under fire, in a folder of its own."""

    model: str
    workers: Workers
    folder: Path
    kills: list[Kill] = field(default_factory=list)
    met: list[int] = field(default_factory=list)  # epochs that were done at every kill that met somebody
    computed: int = 0
    seconds: float = 0.0

    def to_the_end(self, patience: float) -> bool:
        """Run and kill; start anew after the leading process was killed. Tell whether it ended well."""
        (self.folder / "training").mkdir(parents=True)
        begun, waiting = time.monotonic(), list(self.kills)
        for attempt in range(len(self.kills) + 1):
            leading = self._start(attempt)
            while leading.is_alive() and time.monotonic() - begun < patience:
                if waiting and time.monotonic() - begun >= waiting[0].seconds:
                    self._kill(waiting.pop(0), leading)
                leading.join(_LOOK)
            self.seconds = time.monotonic() - begun
            hangs = leading.is_alive()
            if hangs:
                leading.kill()
                leading.join()
            if leading.exitcode != -signal.SIGKILL or hangs:
                break
            self.parted()
            self.computed += self._epochs_done()
        self.computed += len((self.folder / f"told-{attempt}").read_text().splitlines())
        return leading.exitcode == 0

    def _start(self, attempt: int) -> ForkServerProcess:
        context = multiprocessing.get_context("forkserver")
        arguments = (self.model, self.workers.address, self.folder, attempt)
        leading = context.Process(target=lead, args=arguments)
        leading.start()
        return leading

    def _kill(self, kill: Kill, leading: ForkServerProcess) -> None:
        done = self._epochs_done()
        living = self.workers.living(self.folder)
        targets = [pid for rank, pid in living.items() if kill.ranks is not None and rank in kill.ranks]
        if kill.ranks is None and leading.pid:
            targets = [leading.pid]
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if targets:
            self.met.append(done)

    def _epochs_done(self) -> int:
        """How many epochs the first worker of this attempt has told of."""
        done = 0
        for file in (self.folder / "training").rglob("progress"):
            with contextlib.suppress(FileNotFoundError):  # it is the end
                done += len(file.read_text().splitlines())
        return done

    def parted(self) -> int:
        """Wait for the workers' end; return how many stay."""
        until = time.monotonic() + _PARTING
        while (living := self.workers.living(self.folder)) and time.monotonic() < until:
            time.sleep(_LOOK)
        return len(living)

    def result(self) -> dict[str, Any]:
        """Return the published arrays."""
        with np.load(self.folder / "result.npz") as file:
            return dict(file)

    def published(self) -> int:
        """How often a result was published."""
        file = self.folder / "published"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def log_tail(self) -> str:
        """Return the end of what the leading process said."""
        log = self.folder / "log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else ""


class Campaign:
    """Runs of one model on one kind of workers, beside one that nobody disturbs."""

    def __init__(self, model: str, workers: Workers, root: Path, rng: np.random.Generator) -> None:
        self.model, self.workers, self.root, self.rng, self.count = model, workers, root, rng, 0
        self._unkilled()  # what is imported for the first time is not timed
        whole = self._unkilled()
        self.seconds, self.epochs, self.expected = whole.seconds, whole.computed, whole.result()

    def _unkilled(self) -> Run:
        run = self._run([])
        if not run.to_the_end(10 * _PATIENCE):
            raise RuntimeError(f"{self.model} could not be trained even without a kill:\n{run.log_tail()}")
        return run

    def _run(self, kills: list[Kill]) -> Run:
        self.count += 1
        where = "ray" if self.workers.address else "local"
        return Run(self.model, self.workers, self.root / f"{self.model}-{where}-{self.count}", kills)

    def draw(self, kind: str) -> list[Kill]:
        """Draw who is killed, and when."""
        first = float(self.rng.uniform(0, self.seconds))
        rank = int(self.rng.integers(2))
        if kind == LEADER:
            return [Kill(first, None)]
        if kind == BOTH:
            return [Kill(first, (0, 1))]
        later = [Kill(first + float(self.rng.uniform(0, self.seconds)), (rank,))] if kind == TWICE else []
        return [Kill(first, (rank,)), *later]

    def tally(self, kind: str, runs: int) -> Tally:
        """Run so often with kills of one kind."""
        tally = Tally()
        for _ in range(runs):
            run = self._run(self.draw(kind))
            ended = run.to_the_end(_PATIENCE + 10 * self.seconds)
            self._add(tally, run, ended)
            if not run.met:
                self.seconds = run.seconds  # undisturbed, too: the machine may have become slower or faster
            shutil.rmtree(run.folder)
        return tally

    def _add(self, tally: Tally, run: Run, ended: bool) -> None:
        tally.runs += 1
        tally.kills += len(run.kills)
        tally.met_none += len(run.kills) - len(run.met)
        tally.before_epochs += sum(done == 0 for done in run.met)
        tally.among_epochs += sum(0 < done < self.epochs for done in run.met)
        tally.after_epochs += sum(done >= self.epochs for done in run.met)
        tally.ended += ended
        tally.processes_left += run.parted()
        tally.files_left += sum(1 for _ in (run.folder / "training").rglob("*"))
        tally.published_once += run.published() == 1
        tally.longest_seconds = max(tally.longest_seconds, round(run.seconds, 1))
        if not ended:
            harness.say(f"did not end well: {run.kills}, killed after epochs {run.met}:\n{run.log_tail()}")
            return
        found = run.result()
        tally.same_bit_for_bit += all(
            np.array_equal(found[name], self.expected[name]) for name in self.expected
        )
        tally.largest_difference = max(tally.largest_difference, _difference(found, self.expected))
        tally.most_epochs_repeated = max(tally.most_epochs_repeated, run.computed - self.epochs)


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Largest relative difference of an array, by its norm."""
    return max(
        float(np.linalg.norm(found[name] - values) / np.linalg.norm(values))
        if found[name].shape == values.shape
        else float("inf")
        for name, values in expected.items()
    )


@contextlib.contextmanager
def _cluster() -> Iterator[RayCluster]:
    before = dict(os.environ)
    cluster = RayCluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _examine(where: str, workers: Workers, root: Path, runs: int) -> list[dict[str, Any]]:
    rows, rng = [], np.random.default_rng(int(os.environ.get("NEUMF_WORKER_KILLS_SEED", "0")))
    for model in MODELS:
        campaign = Campaign(model, workers, root, rng)
        for kind in (ONE, TWICE, BOTH, LEADER):
            tally = campaign.tally(kind, runs if kind == ONE else -(-runs // SHARE))
            row = {"model": model, "workers": where, "killed": kind, **vars(tally)}
            rows.append(row | {"unkilled_seconds": round(campaign.seconds, 1)})
            harness.say(rows[-1])
    return rows


def main(quick: bool = False) -> dict[str, Any]:
    """Kill workers in ``RUNS`` runs of each kind.

    ``NEUMF_WORKER_KILLS`` sets another number, ``NEUMF_WORKER_KILLS_WHERE`` only ``local`` or ``ray``, and
    ``NEUMF_WORKER_KILLS_SEED`` other moments.
    """
    runs = int(os.environ.get("NEUMF_WORKER_KILLS") or (QUICK_RUNS if quick else RUNS))
    where = os.environ.get("NEUMF_WORKER_KILLS_WHERE", "local ray").split()
    rows, skipped = [], {}
    os.environ |= VARIABLES  # for all that the server forks, which begins before the cluster
    os.environ["PYTHONPATH"] = os.pathsep.join([str(harness.ROOT), *os.environ.get("PYTHONPATH", "").split()])
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks._leading"])
    with tempfile.TemporaryDirectory(prefix="neumf-worker-kills-") as name:
        if "local" in where:
            rows += _examine("local processes", Workers(), Path(name), runs)
        if "ray" in where and importlib.util.find_spec("ray") is None:
            skipped["Ray"] = "it is not installed"
        elif "ray" in where:
            with _cluster() as cluster:
                rows += _examine("Ray, two nodes", cluster, Path(name), runs)
    every = sum(row["runs"] for row in rows)
    return {
        "title": f"{sum(row['kills'] - row['met_none'] for row in rows)} kills in {every} parallel trainings",
        "rows": rows,
        "ratios": {
            "runs that ended": sum(row["ended"] for row in rows) / every,
            "with the unkilled run's result, bit for bit": sum(row["same_bit_for_bit"] for row in rows)
            / every,
            "with a result that was published once": sum(row["published_once"] for row in rows) / every,
        },
        "skipped": skipped,
        "notes": [
            "Expected: all runs end, all results are the same, each is published once, nothing is left over.",
            "Met none: at that moment there was no such process, since it had not begun or had ended.",
            "Largest difference: of any array, by its norm, from that of a run of the same workers that "
            "nobody disturbed.",
            "Epochs repeated: for iNMF iterations, of all starts.",
        ],
    }


if __name__ == "__main__":
    harness.script(main)

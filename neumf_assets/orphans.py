"""Runs whose process died without a word: found by the lock that it held, and marked as failed.

A process that executes a run holds a lock in ``$NEUMF_HOME/locks/runs``. The operating system frees the lock
when the process dies, whether by a kill, for want of memory, or with the machine. A run that is "in progress"
with a free lock is therefore dead, and nobody else would ever say so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import dagster as dg

from neumf_assets.file_lock import is_dead, sign_of_life
from neumf_assets.home import Home

IN_PROGRESS = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


@contextlib.contextmanager
def alive(home: Home, run_id: str) -> Iterator[None]:
    """Hold the run's lock while the body executes it."""
    with sign_of_life(home.run_locks / run_id, run=run_id):
        yield


def process_is_gone(home: Home, run_id: str) -> bool:
    """Whether the process that executed a run died; False for a run that never held a lock."""
    return is_dead(home.run_locks / run_id)


def dead_runs(instance: dg.DagsterInstance, home: Home) -> list[dg.DagsterRun]:
    """Runs that the instance holds to be in progress, and whose process is gone."""
    if not home.run_locks.is_dir():
        return []
    runs = instance.get_runs(dg.RunsFilter(statuses=list(IN_PROGRESS)))
    return [run for run in runs if process_is_gone(home, run.run_id)]


def fail_dead_runs(instance: dg.DagsterInstance, home: Home) -> list[str]:
    """Mark dead runs as failed (or cancelled, if that was under way); returns their ids."""
    dead = dead_runs(instance, home)
    for run in dead:
        message = "The process that executed this run is gone: killed, out of memory, or the machine stopped."
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message)
        else:
            instance.report_run_failed(run, message)
        forget(home, run.run_id)
    return [run.run_id for run in dead]


def forget(home: Home, run_id: str) -> None:
    """Remove what a dead process left of its lock."""
    (home.run_locks / run_id).unlink(missing_ok=True)

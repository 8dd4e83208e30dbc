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
    """Mark dead runs as failed (or cancelled, if that was under way), free their slots; returns their ids."""
    dead = dead_runs(instance, home)
    for run in dead:
        message = "The process that executed this run is gone: killed, out of memory, or the machine stopped."
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message)
        else:
            instance.report_run_failed(run, message)
        forget(home, run.run_id)
    free_slots_of_ended_runs(instance)
    return [run.run_id for run in dead]


def free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Free the places in pools that runs took and, being killed, never gave back.

    The daemon does so too, but a command must not wait for a daemon that nobody has started.
    """
    storage = instance.event_log_storage
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def forget(home: Home, run_id: str) -> None:
    """Remove what a dead process left of its lock."""
    (home.run_locks / run_id).unlink(missing_ok=True)

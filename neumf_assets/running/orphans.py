"""Runs whose process died without a word: found by the lock that it held, and marked as failed.

A process that executes a run holds a lock in ``$NEUMF_HOME/locks/runs``. The operating system frees the lock
when the process dies, whether by a kill, for want of memory, or with the machine. A run that is "in progress"
with a free lock is therefore dead, and nobody else would ever say so. On Kubernetes there is no such lock:
Kubernetes tells whether the pod of a run lives. Where steps have processes of their own, these end with the one
that executes their run, or with the run itself, so that none computes on for nobody and keeps a GPU.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator

import dagster as dg

from neumf_assets.core.processes import end_after
from neumf_assets.home import Home
from neumf_assets.running.file_lock import FileLock, is_dead, sign_of_life

STEP_VARIABLE = "DAGSTER_RUN_STEP_KEY"  # set where a step has a pod or a job of a cluster for itself
LOOK_SECONDS = 10.0
IN_PROGRESS = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


@contextlib.contextmanager
def alive(home: Home, run_id: str) -> Iterator[None]:
    """Hold the run's lock while the body executes it."""
    with sign_of_life(home.run_locks / run_id, run=run_id):
        yield


def end_with_run(home: Home, instance: dg.DagsterInstance, run_id: str) -> None:
    """Where this is a step's own process: end it as soon as nobody waits for its result any more.

    On the machine of its run, that is when the process that executes the run dies; elsewhere, when the run has
    ended or is to end. The run may be started once more, and would find its step at work already.
    """
    if os.environ.get(STEP_VARIABLE):
        end_after(lambda: _wait_for_end(instance, run_id))
        return
    parent = multiprocessing.parent_process()
    if parent is None or FileLock(home.run_locks / run_id).holder().get("pid") != parent.pid:
        return

    end_after(parent.join)


def _wait_for_end(instance: dg.DagsterInstance, run_id: str) -> None:
    """Return when the run is cancelled, failed, succeeded or deleted."""
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            run = instance.get_run_by_id(run_id)
        except Exception as error:
            if not _database_is_away(error):
                raise
            continue  # it may answer at the next look
        if run is None or run.is_finished or run.status == dg.DagsterRunStatus.CANCELING:
            return


def _database_is_away(error: Exception) -> bool:
    """Whether SQLAlchemy raised it; dagster-postgres wraps that into an exception that has no kind of its own."""
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, SQLAlchemyError) or isinstance(error.__cause__, SQLAlchemyError)


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
    forget_ended_runs(instance, home)
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


def forget_ended_runs(instance: dg.DagsterInstance, home: Home) -> None:
    """Remove what dead processes left of their locks, where their runs are known to have ended.

    A code server notices the death of a run's process by itself, and knows nothing of the lock.
    """
    for path in home.run_locks.iterdir() if home.run_locks.is_dir() else ():
        if not path.name.startswith(".") and is_dead(path):
            run = instance.get_run_by_id(path.name)
            if run is not None and run.is_finished:
                path.unlink(missing_ok=True)


def forget(home: Home, run_id: str) -> None:
    """Remove what a dead process left of its lock."""
    (home.run_locks / run_id).unlink(missing_ok=True)

"""Pools made before steps ask for a place in one, since PostgreSQL ends runs that both make the same.

Dagster (1.13.28) inserts a pool's limit and, where it is there already, updates it within the transaction that has just
failed. PostgreSQL refuses that. Two runs that begin at the same time on a new database, or the first after
``default_limit`` has been changed, would end by an exception of no step.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import dagster as dg

_LOOK_SECONDS = 2.0
_SAY_EVERY_SECONDS = 60.0


def settle_pools(instance: dg.DagsterInstance, pools: Iterable[str]) -> None:
    """Make pools that are not there yet with the instance's default limit, and give it to those that follow it.

    Raises
    ------
    Exception
        What the storage raised, where a pool is not as it should be afterwards.
    """
    storage, limit = instance.event_log_storage, instance.global_op_concurrency_default_limit
    if limit is None or not storage.supports_global_concurrency_limits:
        return
    for pool in sorted(set(pools)):
        if _is_settled(instance, pool, limit):
            continue
        try:
            if _limit_of(instance, pool) is not None:
                storage.delete_concurrency_limit(pool)  # places that are taken last until they are given back
            storage.initialize_concurrency_limit_to_default(pool)
        except Exception:
            if not _is_settled(instance, pool, limit):  # another run has been faster
                raise


@contextlib.contextmanager
def said_while_waiting(
    instance: dg.DagsterInstance, run_id: str, say: Callable[[str], None]
) -> Iterator[None]:
    """While a run is executed in the body, say when a step of it waits for a place, and for whom; once a minute."""
    over = threading.Event()

    def watch() -> None:
        said: tuple[str, float] = ("", 0.0)
        while not over.wait(_LOOK_SECONDS):
            with contextlib.suppress(
                Exception
            ):  # a busy database: the run itself would say what is wrong with it
                now = waits_for(instance, run_id) or ""
                if now and (now != said[0] or time.monotonic() - said[1] >= _SAY_EVERY_SECONDS):
                    said = (now, time.monotonic())
                    say(now)

    watcher = threading.Thread(target=watch, daemon=True, name="waits")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(_LOOK_SECONDS * 5)


def waits_for(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """What a run waits for: a step that has asked for a place in a pool, and who has the places; ``None``: nothing."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return None
    for limit in storage.get_pool_limits():
        found = storage.get_concurrency_info(limit.name)
        asking = [
            step for step in found.pending_steps if step.run_id == run_id and step.assigned_timestamp is None
        ]
        if asking:
            holders = [_described(instance, slot.run_id, slot.step_key) for slot in found.claimed_slots]
            told = "; ".join(holders) or "another step that was here before"
            asset = _asset_of(asking[0].step_key)
            return f"{asset} waits for its turn: {told} (pool {limit.name}, {limit.limit} at a time)"
    return None


def _described(instance: dg.DagsterInstance, run_id: str, step: str) -> str:
    run = instance.get_run_by_id(run_id)
    job = f" of {run.job_name}" if run is not None else ""
    return f"{_asset_of(step)} is made by run {run_id[:8]}{job}"


def _asset_of(step: str) -> str:
    return step.replace("__", "/")


def _is_settled(instance: dg.DagsterInstance, pool: str, limit: int) -> bool:
    """Whether a pool has a limit, which is the default one or somebody's own."""
    found = _limit_of(instance, pool)
    return found is not None and (found[1] is False or found[0] == limit)


def _limit_of(instance: dg.DagsterInstance, pool: str) -> tuple[int, bool] | None:
    """The limit of a pool and whether it is the default one."""
    limits = instance.event_log_storage.get_pool_limits()
    return next(((own.limit, own.from_default) for own in limits if own.name == pool), None)

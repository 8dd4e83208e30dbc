"""Pools made before steps ask for a place in one, since PostgreSQL ends runs that both make the same.

Dagster (1.13.28) inserts a pool's limit and, where it is there already, updates it within the transaction that has just
failed. PostgreSQL refuses that. Two runs that begin at the same time on a new database, or the first after
``default_limit`` has been changed, would end by an exception of no step.
"""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg


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


def _is_settled(instance: dg.DagsterInstance, pool: str, limit: int) -> bool:
    """Whether a pool has a limit, which is the default one or somebody's own."""
    found = _limit_of(instance, pool)
    return found is not None and (found[1] is False or found[0] == limit)


def _limit_of(instance: dg.DagsterInstance, pool: str) -> tuple[int, bool] | None:
    """The limit of a pool and whether it is the default one."""
    limits = instance.event_log_storage.get_pool_limits()
    return next(((own.limit, own.from_default) for own in limits if own.name == pool), None)

"""Pools on a real PostgreSQL, where two runs that begin at once make the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.execution.api import create_execution_plan

from neumf_assets.running import pools as module
from neumf_assets.running.executors import AliveExecutor
from neumf_assets.running.pools import said_while_waiting, settle_pools, waits_for
from neumf_assets_tests.e2e.servers import Postgres, postgres


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@contextmanager
def instance(folder: Path, storage: str, limit: int | None) -> Iterator[dg.DagsterInstance]:
    """An instance of its own on a storage, as a further process has it."""
    folder.mkdir(exist_ok=True)
    pools = "" if limit is None else f"concurrency: {{pools: {{default_limit: {limit}, granularity: op}}}}\n"
    (folder / "dagster.yaml").write_text(f"storage: {storage}\n{pools}")
    with dg.DagsterInstance.from_config(str(folder)) as found:
        yield found


@pytest.fixture(params=["postgresql", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The storage's part of ``dagster.yaml``."""
    if request.param == "sqlite":
        return f"{{sqlite: {{base_dir: {tmp_path / 'history'}}}}}"
    server: Postgres = request.getfixturevalue("database")
    place = f"hostname: 127.0.0.1, port: {server.port}, username: {server.user}, password: {server.password}"
    return (
        f"{{postgres: {{postgres_db: {{scheme: postgresql+psycopg2, {place}, db_name: {server.database}}}}}}}"
    )


def limits(found: dg.DagsterInstance) -> dict[str, tuple[int, bool]]:
    """Limit of each pool, and whether it is the default one."""
    return {own.name: (own.limit, own.from_default) for own in found.event_log_storage.get_pool_limits()}


def test_two_runs_that_begin_at_once_make_one_pool(storage: str, tmp_path: Path) -> None:
    errors: list[Exception] = []
    with instance(tmp_path / "a", storage, 1) as one, instance(tmp_path / "b", storage, 1) as other:
        for number in range(8):
            begin = threading.Barrier(2)

            def run(
                own: dg.DagsterInstance, pool: str = f"race{number}", begin: threading.Barrier = begin
            ) -> None:
                begin.wait(30)
                try:
                    settle_pools(own, [pool])
                except Exception as error:
                    errors.append(error)

            threads = [threading.Thread(target=run, args=(own,)) for own in (one, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert errors == []
        assert {name: limits(one)[name] for name in limits(one) if name.startswith("race")} == {
            f"race{number}": (1, True) for number in range(8)
        }
        info = one.event_log_storage.get_concurrency_info("race0")
        assert info.slot_count == 1


def test_a_changed_default_reaches_pools_that_follow_it_and_no_others(storage: str, tmp_path: Path) -> None:
    with instance(tmp_path / "a", storage, 1) as before:
        settle_pools(before, ["gpu", "own"])
        before.event_log_storage.set_concurrency_slots("own", 5)
        assert before.event_log_storage.claim_concurrency_slot("gpu", "run", "step").is_claimed
    with instance(tmp_path / "b", storage, 3) as after:
        settle_pools(after, ["gpu", "own"])
        assert (limits(after)["gpu"], limits(after)["own"]) == ((3, True), (5, False))
        after.event_log_storage.free_concurrency_slot_for_step("run", "step")
        claimed = [
            after.event_log_storage.claim_concurrency_slot("gpu", "run", f"step{i}").is_claimed
            for i in range(4)
        ]
        assert claimed == [True, True, True, False]


def test_without_a_default_no_pool_is_made(storage: str, tmp_path: Path) -> None:
    with instance(tmp_path / "a", storage, None) as found:
        settle_pools(found, ["unlimited"])
        assert "unlimited" not in limits(found)


def test_a_run_settles_the_pools_of_its_steps_before_they_ask(tmp_path: Path, home: Path) -> None:
    @dg.op(pool="device")
    def trained() -> None: ...

    @dg.op
    def other() -> None: ...

    @dg.job
    def both() -> None:
        trained()
        other()

    class Asking:
        """Looks for the pools instead of executing."""

        def execute(self, context: SimpleNamespace, plan: object) -> Iterator[set[str]]:
            yield set(limits(context.instance))

    with instance(tmp_path / "a", f"{{sqlite: {{base_dir: {tmp_path / 'history'}}}}}", 1) as found:
        run = SimpleNamespace(instance=found, run_id="run")
        plan = create_execution_plan(both)
        assert list(AliveExecutor(Asking()).execute(run, plan)) == [{"device"}]  # type: ignore[arg-type]


def test_a_run_that_waits_says_for_whom(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.1)

    @dg.op(pool="turns")
    def tiny__neumf_model() -> None: ...

    @dg.job
    def tiny_train() -> None:
        tiny__neumf_model()

    @dg.job
    def other_train() -> None:
        tiny__neumf_model()

    said: list[str] = []
    mine = str(uuid4())
    with instance(tmp_path / "a", storage, 1) as found:
        settle_pools(found, ["turns"])
        holder = found.create_run_for_job(other_train)
        found.event_log_storage.claim_concurrency_slot("turns", holder.run_id, "other__neumf_model")
        assert waits_for(found, mine) is None

        def hear(text: str) -> None:
            said.append(text)
            found.event_log_storage.free_concurrency_slots_for_run(holder.run_id)

        with said_while_waiting(found, mine, hear):
            result = tiny_train.execute_in_process(instance=found, run_id=mine)
        assert result.success
        assert waits_for(found, mine) is None
    assert said == [
        "tiny/neumf_model waits for its turn: other/neumf_model is made by run "
        f"{holder.run_id[:8]} of other_train (pool turns, 1 at a time)"
    ]

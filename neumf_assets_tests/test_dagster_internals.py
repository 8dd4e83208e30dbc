"""What is used of Dagster without a public form is still there and does what is relied on."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import dagster as dg
import pytest

from neumf_assets import dagster_internals
from neumf_assets.dagster_internals import (
    BulkActionStatus,
    CheckRunHealthResult,
    DefaultRunLauncher,
    RunFailureReason,
    WorkerStatus,
    daemon_statuses,
    is_valid_cron_string,
    is_valid_owner,
    runs_of_the_code_location,
)

PACKAGE = Path(dagster_internals.__file__).parent


def test_nothing_else_imports_what_is_private_to_dagster() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path == Path(dagster_internals.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [module]
            assert not [name for name in names if name.startswith("dagster._")], path


@pytest.mark.parametrize("name", dagster_internals.PRELOADED)
def test_what_steps_are_forked_with_is_there(name: str) -> None:
    importlib.import_module(name)


def test_types_of_executors_and_jobs_are_where_they_were() -> None:
    for node in ast.walk(ast.parse(Path(dagster_internals.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dagster."):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"Dagster has no {node.module}.{alias.name} any more"


def test_an_executed_run_has_the_code_locations_origin() -> None:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def work() -> None:
        nothing()

    with dg.DagsterInstance.ephemeral() as instance:
        with runs_of_the_code_location(instance, "work"):
            inside = work.execute_in_process(instance=instance).dagster_run.run_id
        outside = work.execute_in_process(instance=instance).dagster_run.run_id
        run = instance.get_run_by_id(inside)
        assert run is not None and run.remote_job_origin is not None
        assert run.remote_job_origin.location_name == "neumf_assets"
        other = instance.get_run_by_id(outside)
        assert other is not None and other.remote_job_origin is None


def test_run_monitoring_can_still_be_told_that_a_run_is_dead() -> None:
    assert set(inspect.signature(DefaultRunLauncher.check_run_worker_health).parameters) == {"self", "run"}
    assert {"RUNNING", "FAILED"} <= {one.name for one in WorkerStatus}
    assert CheckRunHealthResult(WorkerStatus.FAILED, "gone").msg == "gone"


def test_states_have_the_names_that_are_looked_for() -> None:
    assert {"REQUESTED", "CANCELING", "FAILING"} <= {one.name for one in BulkActionStatus}
    assert RunFailureReason.UNEXPECTED_TERMINATION


def test_rules_of_settings_are_dagsters() -> None:
    assert is_valid_cron_string("0 2 * * *") and not is_valid_cron_string("99 2 * * *")
    assert is_valid_owner("team:x") and not is_valid_owner("somebody")


def test_the_daemons_status_can_be_asked() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert not any(one.healthy for one in daemon_statuses(instance).values())

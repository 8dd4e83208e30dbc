"""What is used of Dagster that has no public form, and why; nothing else of the package may import the like.

A test names each of these, so that a version of Dagster that changes one fails there and says which.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.utils import is_valid_owner
from dagster._core.events import RunFailureReason
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._serdes import ConfigurableClassData
from dagster._utils.schedules import is_valid_cron_string

if TYPE_CHECKING:
    # The types of what an executor is given and answers; dg.Executor itself is public.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode
    from dagster._core.execution.step_dependency_config import StepDependencyConfig
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._daemon.types import DaemonStatus

__all__ = [
    "BulkActionStatus",  # whether a backfill is over: dg.DagsterInstance.get_backfill gives one, no name for it
    "CheckRunHealthResult",  # what a run launcher answers to run monitoring; launchers have no public base
    "ConfigurableClassData",  # what a launcher named in dagster.yaml is made with
    "DefaultRunLauncher",
    "ExecutionPlan",
    "PlanOrchestrationContext",
    "RetryMode",
    "RunFailureReason",  # tells an interrupted run from a failed one
    "StepDependencyConfig",
    "UnresolvedAssetJobDefinition",  # what the public dg.define_asset_job returns
    "WorkerStatus",
    "is_valid_cron_string",  # the very rules that schedules apply later, when it is too late to name the setting
    "is_valid_owner",
]
PRELOADED = ("dagster._core.executor.multiprocess", "dagster._core.storage.sqlite_storage")
"""Modules that every step process imports; imported once, before it is forked."""
MODULE, LOCATION, REPOSITORY = "neumf_assets.definitions", "neumf_assets", "__repository__"


@contextlib.contextmanager
def runs_of_the_code_location(instance: dg.DagsterInstance, job: str) -> Iterator[None]:
    """Let runs of ``job`` that the body executes in this process belong to the code location.

    ``execute_in_process`` creates its run without an origin: the timeline lacks it then, and it cannot be
    executed again from the web interface. There is no way to tell it the origin but where it creates the run.
    """
    origin = RemoteJobOrigin(
        RemoteRepositoryOrigin(
            ManagedGrpcPythonEnvCodeLocationOrigin(
                LoadableTargetOrigin(executable_path=sys.executable, module_name=MODULE), LOCATION
            ),
            REPOSITORY,
        ),
        job,
    )
    code = JobPythonOrigin(
        job,
        RepositoryPythonOrigin(
            sys.executable, ModuleCodePointer(MODULE, "defs"), entry_point=DEFAULT_DAGSTER_ENTRY_POINT
        ),
    )
    create = instance.create_run_for_job
    instance.create_run_for_job = partial(  # type: ignore[method-assign]
        create, remote_job_origin=origin, job_code_origin=code
    )
    try:
        yield
    finally:
        del instance.create_run_for_job


def loaded_here(instance: dg.DagsterInstance) -> WorkspaceProcessContext:
    """The code location, loaded into this process; Dagster's own command line launches backfills over the like."""
    from dagster._core.remote_origin import InProcessCodeLocationOrigin
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget

    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=MODULE)
    origin = InProcessCodeLocationOrigin(loadable_target_origin=target, location_name=LOCATION)
    return WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin))


def daemon_statuses(instance: dg.DagsterInstance) -> Mapping[str, DaemonStatus]:
    """Status of each daemon that the instance needs; the public form is the command ``liveness-check``, yes or no."""
    from dagster._daemon.controller import get_daemon_statuses

    return get_daemon_statuses(instance, instance.get_required_daemon_types())


def run_webserver(wrapped: Callable[[Any], Any]) -> None:
    """Run ``dagster-webserver`` by the arguments of this process, with its application wrapped.

    Its command offers no place for middleware; it makes the application by a name of its module.
    """
    from dagster_webserver import cli

    make = cli.create_app_from_workspace_process_context
    cli.create_app_from_workspace_process_context = lambda *given, **named: wrapped(make(*given, **named))
    cli.main()


def develop(arguments: Sequence[str], webserver: Sequence[str]) -> None:
    """Run ``dagster dev`` with another command in the place of its webserver's.

    It takes options for the webserver, but not which webserver; it starts its processes by a name of its module.
    """
    from dagster._cli import dev

    start = dev.open_ipc_subprocess

    def started(parts: Sequence[str], **kwargs: Any) -> Any:
        if list(parts[1:3]) == ["-m", "dagster_webserver"]:
            parts = [*webserver, *parts[3:]]
        return start(parts, **kwargs)

    dev.open_ipc_subprocess = started
    try:
        dev.dev_command(list(arguments), prog_name="neumf-assets ui", standalone_mode=False)
    finally:
        dev.open_ipc_subprocess = start

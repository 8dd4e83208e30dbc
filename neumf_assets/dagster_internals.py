"""What is used of Dagster that has no public form, and why; nothing else of the package may import the like.

A test names each of these, so that a version of Dagster that changes one fails there and says which.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import partial

import dagster as dg
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

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

"""Executors: how the steps of a run are spread over processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from neumf_assets.core.errors import BadSettings
from neumf_assets.home import Home, usable_cpus
from neumf_assets.orphans import alive, forget_ended_runs

if TYPE_CHECKING:
    from dagster._core.events import DagsterEvent
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode
    from dagster._core.execution.step_dependency_config import StepDependencyConfig

# Imported once, by the server that step processes are forked from; each would take seconds in every step.
# None of them starts a thread or touches a GPU at import, which a fork would not survive; polars does.
PRELOADED = (
    "dagster._core.executor.multiprocess",
    "neumf_assets.definitions",
    "torch",
    "anndata",
    "scipy.sparse",
    "sklearn",
    "pyarrow.parquet",
)


def executor() -> dg.ExecutorDefinition:
    """The executor named by ``NEUMF_EXECUTOR``: ``in_process`` (default) or ``multiprocess``.

    In one process, steps of a run share what they imported, and a run is one process of its own anyway. With
    many, steps that do not wait for each other run side by side, and memory is given back after each.

    Raises
    ------
    BadSettings
        If the name is unknown.
    """
    name = os.environ.get("NEUMF_EXECUTOR") or "in_process"
    if name not in EXECUTORS:
        raise BadSettings(f"NEUMF_EXECUTOR is {name!r}; set it to one of {', '.join(EXECUTORS)}.")
    return EXECUTORS[name]


class AliveExecutor(dg.Executor):
    """Executes with another executor, and holds the run's lock meanwhile."""

    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> RetryMode:
        """As the inner executor says."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        """As the inner executor says."""
        return self._inner.step_dependency_config

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Execute the plan."""
        home = Home.from_environment()
        forget_ended_runs(plan_context.instance, home)
        with alive(home, plan_context.run_id):
            yield from self._inner.execute(plan_context, execution_plan)


def _alive(base: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    def create(context: dg.InitExecutorContext) -> dg.Executor:
        assert base.executor_creation_fn is not None
        return AliveExecutor(base.executor_creation_fn(context))

    return dg.ExecutorDefinition(
        name=base.name,
        config_schema=base.config_schema.as_field(),
        requirements=base.get_requirements,
        executor_creation_fn=create,
        description=base.description,
    )


def _forking(base: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """Fork steps from a server with everything imported; as many at a time as there are processors."""

    def defaults(config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **config,
            "max_concurrent": config.get("max_concurrent") or usable_cpus(),
            "start_method": config.get("start_method")
            or {"forkserver": {"preload_modules": list(PRELOADED)}},
        }

    return base.configured(defaults, name=base.name, config_schema=base.config_schema.as_field())


EXECUTORS = {
    "in_process": _alive(dg.in_process_executor),
    "multiprocess": _forking(_alive(dg.multiprocess_executor)),
}

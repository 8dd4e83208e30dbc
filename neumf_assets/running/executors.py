"""Executors: how the steps of a run are spread over processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from neumf_assets import dagster_internals
from neumf_assets.core.cgroup import usable_cpus
from neumf_assets.core.errors import BadSettings
from neumf_assets.home import Home
from neumf_assets.running.orphans import alive, forget_ended_runs
from neumf_assets.running.pools import settle_pools

if TYPE_CHECKING:
    from neumf_assets.dagster_internals import (
        ExecutionPlan,
        PlanOrchestrationContext,
        RetryMode,
        StepDependencyConfig,
    )

# Imported once, by the server that step processes are forked from; each would take seconds in every step.
# None of them starts a thread or touches a GPU at import, which a fork would not survive; polars does.
PRELOADED = (
    *dagster_internals.PRELOADED,
    "neumf_assets.definitions",
    "torch",
    "anndata",
    "scipy.sparse",
    "sklearn",
    "pyarrow.parquet",
)


def executor() -> dg.ExecutorDefinition:
    """The executor named by ``NEUMF_EXECUTOR``: ``in_process`` (default), ``multiprocess``, ``ray``, ``kubernetes``.

    In one process, steps of a run share what they imported, and a run is one process of its own anyway. With
    many, steps that do not wait for each other run side by side, and memory is given back after each. On Ray,
    each step is a job of the cluster at ``RAY_API_SERVER_ADDRESS`` (its dashboard's address), with the
    processors, GPU and memory that it asks for; ``NEUMF_HOME`` must be the same folder on every node. On
    Kubernetes, likewise, each step is a pod of the cluster that the run launcher knows.

    Raises
    ------
    BadSettings
        If the name is unknown, or what it needs is not installed.
    """
    name = os.environ.get("NEUMF_EXECUTOR") or "in_process"
    if name not in (*EXECUTORS, *ON_CLUSTERS):
        raise BadSettings(
            f"NEUMF_EXECUTOR is {name!r}; set it to one of {', '.join([*EXECUTORS, *ON_CLUSTERS])}."
        )
    if name == "ray":
        return _on_ray()
    if name == "kubernetes":
        return _on_kubernetes()
    return EXECUTORS[name]


class AliveExecutor(dg.Executor):
    """Executes with another executor once its pools are there, and holds the run's lock meanwhile."""

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
    ) -> Iterator[dg.DagsterEvent]:
        """Execute the plan."""
        home = Home.from_environment()
        forget_ended_runs(plan_context.instance, home)
        with alive(home, plan_context.run_id):
            settle_pools(plan_context.instance, _pools_of(execution_plan))
            yield from self._inner.execute(plan_context, execution_plan)


def _pools_of(plan: ExecutionPlan) -> Iterator[str]:
    """The pools in which steps of a plan take a place."""
    for key in plan.step_keys_to_execute:
        pool = plan.get_step_by_key(key).pool
        if pool is not None:
            yield pool


def _alive(base: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    def create(context: dg.InitExecutorContext) -> dg.Executor:
        assert base.executor_creation_fn is not None
        return AliveExecutor(base.executor_creation_fn(context))

    return _created_by(create, base)


def _created_by(
    create: Callable[[dg.InitExecutorContext], dg.Executor], base: dg.ExecutorDefinition
) -> dg.ExecutorDefinition:
    """The executor of a definition, created in another way."""
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


def _on_ray() -> dg.ExecutorDefinition:
    """Steps as jobs of a Ray cluster; they get the variables that say where everything lives."""
    try:
        from dagster_ray import ray_executor
    except ImportError as error:
        raise _missing("ray", error) from None

    def defaults(config: Mapping[str, Any]) -> dict[str, Any]:
        ray = dict(config["ray"])
        ray["address"] = ray.get("address") or os.environ.get("RAY_API_SERVER_ADDRESS") or RAY_ADDRESS
        ray["env_vars"] = [*_passed_on(), *(ray.get("env_vars") or [])]
        return {**config, "ray": ray}

    base = _alive(ray_executor)
    return base.configured(defaults, name="ray", config_schema=base.config_schema.as_field())


def _on_kubernetes() -> dg.ExecutorDefinition:
    """Steps as pods, with the image and the variables of the run's own pod.

    The run holds no lock: Kubernetes knows whether its pod lives, and a lock that the volume keeps to one node
    would make it look dead from every other.
    """
    try:
        from dagster_k8s import K8sRunLauncher, k8s_job_executor
    except ImportError as error:
        raise _missing("kubernetes", error) from None

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        launcher = context.instance.run_launcher
        if not isinstance(launcher, K8sRunLauncher):
            raise BadSettings(
                f"NEUMF_EXECUTOR is 'kubernetes', but runs are started by {type(launcher).__name__}, which knows "
                "neither cluster nor image. In dagster.yaml set run_launcher to {module: dagster_k8s, class: "
                "K8sRunLauncher, config: ...}, or set NEUMF_EXECUTOR to multiprocess."
            )
        config = {**_inside_cluster(context.executor_config), **context.executor_config}
        assert k8s_job_executor.executor_creation_fn is not None
        return k8s_job_executor.executor_creation_fn(context._replace(executor_config=config))

    return _created_by(create, k8s_job_executor)


def _inside_cluster(config: Mapping[str, object]) -> dict[str, object]:
    """In a pod, the cluster is found by the pod's account: the launcher's kubeconfig may lie outside."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ or {"load_incluster_config", "kubeconfig_file"} & set(
        config
    ):
        return {}
    return {"load_incluster_config": True, "kubeconfig_file": None}


def _missing(name: str, error: ImportError) -> BadSettings:
    return BadSettings(
        f"NEUMF_EXECUTOR is {name!r}, but {error.name} is not installed; pip install 'neumf-assets[{name}]'."
    )


def _passed_on() -> list[str]:
    """The variables that a step needs on another machine, as ``KEY=VALUE``."""
    home = Home.from_environment()
    values = {name: value for name, value in os.environ.items() if name.startswith("NEUMF_")}
    values |= {"NEUMF_HOME": str(home.root), "DAGSTER_HOME": str(home.dagster.absolute())}
    return [f"{name}={value}" for name, value in sorted(values.items())]


RAY_ADDRESS = "http://127.0.0.1:8265"
ON_CLUSTERS = ("ray", "kubernetes")

EXECUTORS = {
    "in_process": _alive(dg.in_process_executor),
    "multiprocess": _forking(_alive(dg.multiprocess_executor)),
}

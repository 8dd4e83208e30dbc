"""What Dagster's Helm chart makes of our values, as far as the pods of runs and steps are concerned.

Written down from the chart's templates, without which nothing could be tried here: the run launcher's part of
``dagster.yaml``, and what the code server hands to every run. ``test_kubernetes_chart.py`` takes both from
``helm template`` instead, where somebody has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from neumf_assets.assets.catalogue import stages
from neumf_assets.running.step_requests import KUBERNETES_TAG, request_tags
from neumf_assets.study.settings import StudySettings

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
RELEASE, NAMESPACE = "neumf", "science"
RUN_ID = "3f1f8a52-6d0e-4a57-9d55-0b1f6a2f3c11"


def values() -> dict[str, Any]:
    """``values.yaml``."""
    found: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
    return found


def study() -> StudySettings:
    """``study.yaml``."""
    return StudySettings.model_validate(yaml.safe_load((FOLDER / "study.yaml").read_text()))


def image(deployment: Mapping[str, Any]) -> str:
    """The image of a deployment, as one name."""
    return f"{deployment['image']['repository']}:{deployment['image']['tag']}"


def launcher_config(found: Mapping[str, Any]) -> dict[str, Any]:
    """The run launcher's configuration in the ``dagster.yaml`` that the chart writes."""
    given = found["runLauncher"]["config"]["k8sRunLauncher"]
    raw = {
        "container_config": given["runK8sConfig"].get("containerConfig"),
        "pod_spec_config": given["runK8sConfig"].get("podSpecConfig"),
        "job_spec_config": given["runK8sConfig"].get("jobSpecConfig"),
    }
    return {
        "load_incluster_config": True,
        "job_namespace": NAMESPACE,
        "image_pull_policy": given["imagePullPolicy"],
        "service_account_name": f"{RELEASE}-dagster",
        "dagster_home": found["global"]["dagsterHome"],
        "instance_config_map": f"{RELEASE}-dagster-instance",
        "postgres_password_secret": found["global"]["postgresqlSecretName"],
        "run_k8s_config": {name: part for name, part in raw.items() if part},
    }


def container_context(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """What the code server hands to every run: its variable ``DAGSTER_CONTAINER_CONTEXT``."""
    assert deployment["includeConfigInLaunchedRuns"]["enabled"]
    subchart = f"{RELEASE}-dagster-user-deployments"
    pod_spec = {"automount_service_account_token": True}
    return {
        "k8s": {
            "image_pull_policy": deployment["image"]["pullPolicy"],
            "env_config_maps": [f"{subchart}-{deployment['name']}-user-env"],
            "env_secrets": [secret["name"] for secret in deployment["envSecrets"]],
            "volume_mounts": deployment["volumeMounts"],
            "volumes": deployment["volumes"],
            "resources": deployment["resources"],
            "namespace": NAMESPACE,
            "service_account_name": f"{subchart}-user-deployments",
            "env": deployment["env"],
            "run_k8s_config": {"pod_spec_config": pod_spec},
        }
    }


def jobs(
    launcher: Mapping[str, Any], context: Mapping[str, Any], named: str, kubeconfig: Path
) -> dict[str, dict[str, Any]]:
    """The Jobs of a run (``run``) and of every asset of ``study.yaml``, merged by dagster-k8s's own code."""
    from dagster._core.code_pointer import ModuleCodePointer
    from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
    from dagster_k8s import K8sRunLauncher
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import get_job_name_from_run_id, get_k8s_job_name, get_user_defined_k8s_config

    outside = {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    runs = K8sRunLauncher(**{**launcher, **outside})
    origin = RepositoryPythonOrigin(
        "python", ModuleCodePointer("neumf_assets.definitions", "defs"), named, ["dagster"], dict(context)
    )
    run = dg.DagsterRun("kang_train", RUN_ID, job_code_origin=JobPythonOrigin("kang_train", origin))
    made = {
        "run": _job(runs, runs.get_container_context_for_run(run), named, get_job_name_from_run_id(RUN_ID))
    }
    for declared in stages(study()):
        tags = {KUBERNETES_TAG: json.dumps(request_tags(study(), declared)[KUBERNETES_TAG])}
        merged = K8sContainerContext.create_for_run(run, runs, include_run_tags=False).merge(
            K8sContainerContext(run_k8s_config=get_user_defined_k8s_config(tags))
        )
        name = f"dagster-step-{get_k8s_job_name(RUN_ID, declared.path)}"
        made[declared.path] = _job(runs, merged, named, name, declared.path.replace("/", "__"))
    return made


def _job(launcher: Any, context: Any, named: str, name: str, step: str | None = None) -> dict[str, Any]:
    from dagster_k8s.job import construct_dagster_k8s_job
    from kubernetes.client import ApiClient

    job = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(named, launcher),
        args=["dagster", "api", "execute_run" if step is None else "execute_step"],
        job_name=name,
        pod_name=name,
        component="run_worker" if step is None else "step_worker",
        user_defined_k8s_config=context.run_k8s_config,
        labels={"dagster/job": "kang_train", "dagster/run-id": RUN_ID, "dagster/op": step or "run"},
        env_vars=[{"name": "DAGSTER_RUN_JOB_NAME", "value": "kang_train"}],
    )
    found: dict[str, Any] = ApiClient().sanitize_for_serialization(job)
    return found


def container(job: Mapping[str, Any]) -> dict[str, Any]:
    """The only container of a Job's pod."""
    [found] = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def variables(job: Mapping[str, Any]) -> dict[str, str | None]:
    """Variables that stand in a Job's container by name; None where a secret has the value."""
    return {item["name"]: item.get("value") for item in container(job)["env"]}

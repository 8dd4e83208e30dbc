"""The values for Dagster's Helm chart and the requests of steps, as far as they can be checked without a cluster.

Checked: the chart's keys (a list of those used, from the chart's own schema), and the Jobs of a run and of every
step, as dagster-k8s merges them out of our values, against Kubernetes' own schemas. With the chart itself, where
somebody has it: ``test_kubernetes_chart.py``. Pods that really run: ``test_kubernetes_run.py``.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob

from neumf_assets.assets.catalogue import stages
from neumf_assets.core.errors import BadSettings
from neumf_assets.home import Home
from neumf_assets.running.executors import executor
from neumf_assets.running.step_requests import KUBERNETES_TAG, request_tags
from neumf_assets_tests.conftest import need
from neumf_assets_tests.running.kubernetes.chart import (
    container,
    container_context,
    image,
    jobs,
    launcher_config,
    study,
    values,
    variables,
)
from neumf_assets_tests.running.kubernetes.objects import Refused, check_object
from neumf_assets_tests.running.kubernetes.stand_in import write_kubeconfig

RESOURCES = {"requests": {"cpu", "memory"}, "limits": {"memory"}}
# Keys that the chart's schema (DagsterHelmValues) knows, those used here; a set names a free-form object's keys.
CHART: dict[str, Any] = {
    "global": {"dagsterHome", "postgresqlSecretName"},
    "generatePostgresqlPasswordSecret": bool,
    "dagster-user-deployments": {
        "enabled": bool,
        "enableSubchart": bool,
        "deployments": [
            {
                "name": str,
                "image": {"repository", "tag", "pullPolicy"},
                "codeServerArgs": list,
                "port": int,
                "env": list,
                "envSecrets": list,
                "includeConfigInLaunchedRuns": {"enabled"},
                "volumes": list,
                "volumeMounts": list,
                "podSecurityContext": dict,
                "resources": RESOURCES,
            }
        ],
    },
    "runLauncher": {
        "type": str,
        "config": {
            "k8sRunLauncher": {
                "imagePullPolicy": str,
                "failPodOnRunFailure": bool,
                "runK8sConfig": {
                    "podSpecConfig": {"securityContext": dict},
                    "jobSpecConfig": {"activeDeadlineSeconds": int, "ttlSecondsAfterFinished": int},
                },
            }
        },
    },
    "dagsterDaemon": {
        "enabled": bool,
        "runCoordinator": {
            "enabled": bool,
            "type": str,
            "config": {"queuedRunCoordinator": {"maxConcurrentRuns": int}},
        },
        "runMonitoring": {
            "enabled": bool,
            "startTimeoutSeconds": int,
            "maxResumeRunAttempts": int,
            "freeSlotsAfterRunEndSeconds": int,
        },
        "runRetries": {"enabled": bool, "maxRetries": int, "retryOnAssetOrOpFailure": bool},
        "resources": RESOURCES,
    },
    "dagsterWebserver": {"replicaCount": int, "service": {"type", "port"}, "resources": RESOURCES},
    "postgresql": {
        "enabled",
        "postgresqlHost",
        "postgresqlUsername",
        "postgresqlDatabase",
        "postgresqlScheme",
        "service",
    },
    "ingress": {"enabled"},
    "telemetry": {"enabled"},
}


def _check(value: Any, schema: Any, where: str) -> None:
    if isinstance(schema, type):
        assert isinstance(value, schema), where
    elif isinstance(schema, set):
        assert set(value) <= schema, where
    elif isinstance(schema, list):
        for number, item in enumerate(value):
            _check(item, schema[0], f"{where}[{number}]")
    else:
        assert set(value) <= set(schema), where
        for key, part in value.items():
            _check(part, schema[key], f"{where}.{key}")


def test_the_values_use_keys_and_types_of_the_chart() -> None:
    _check(values(), CHART, "values")


def test_a_key_that_the_chart_does_not_know_is_found() -> None:
    found = values()
    found["runLauncher"]["config"]["k8sRunLauncher"]["resource"] = {}
    with pytest.raises(AssertionError, match=r"values\.runLauncher\.config\.k8sRunLauncher"):
        _check(found, CHART, "values")


def test_the_chart_makes_no_secret_beside_the_one_that_is_there() -> None:
    found = values()
    assert found["global"]["postgresqlSecretName"]
    assert found["generatePostgresqlPasswordSecret"] is False
    assert "postgresqlPassword" not in found["postgresql"]


def test_the_deployment_runs_steps_as_pods_that_see_the_same_home() -> None:
    [deployment] = values()["dagster-user-deployments"]["deployments"]
    env = {item["name"]: item.get("value") for item in deployment["env"]}
    assert env["NEUMF_EXECUTOR"] == "kubernetes"
    assert [mount["mountPath"] for mount in deployment["volumeMounts"]] == [env["NEUMF_HOME"]]
    assert {v["name"] for v in deployment["volumes"]} == {m["name"] for m in deployment["volumeMounts"]}
    assert deployment["includeConfigInLaunchedRuns"] == {"enabled": True}
    assert deployment["codeServerArgs"] == ["-m", "neumf_assets.definitions"]


def test_every_asset_asks_for_what_the_study_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMF_DEVICE", "cuda")
    assert set(study().requests) <= {name for item in stages(study()) for name in (item.path, item.group)}
    tags = {item.path: request_tags(study(), item)[KUBERNETES_TAG] for item in stages(study())}
    found = {path: tag["container_config"]["resources"] for path, tag in tags.items()}
    assert found["raw_counts"]["requests"] == {"cpu": "1000m", "memory": "4096Mi"}
    assert found["ineumf/model"]["limits"] == {"memory": "8192Mi", "nvidia.com/gpu": "1"}
    assert "nvidia.com/gpu" not in found["report"]["limits"]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, dict[str, Any]]]:
    """The Jobs of the run and of every asset, out of values that may differ from ours."""
    need(importlib.util.find_spec("dagster_k8s"), "dagster-k8s")
    need(importlib.util.find_spec("kubernetes_validate"), "kubernetes-validate")
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")

    def make(device: str = "cpu", found: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        monkeypatch.setenv("NEUMF_DEVICE", device)
        found = found or values()
        [deployment] = found["dagster-user-deployments"]["deployments"]
        return jobs(launcher_config(found), container_context(deployment), image(deployment), kubeconfig)

    return make


Make = Callable[..., dict[str, dict[str, Any]]]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kubernetes_accepts_the_job_of_the_run_and_of_every_step(made: Make, device: str) -> None:
    found = made(device)
    assert set(found) == {"run", *(item.path for item in stages(study()))}
    for job in found.values():
        check_object(job)


def test_every_pod_sees_the_home_the_settings_and_the_keys(made: Make) -> None:
    for name, job in made().items():
        pod, inside = job["spec"]["template"]["spec"], container(job)
        assert variables(job)["NEUMF_HOME"] == "/var/lib/neumf", name
        assert variables(job)["NEUMF_EXECUTOR"] == "kubernetes"
        assert variables(job)["NEUMF_STORAGE"] == "s3://neumf/storage"
        assert variables(job)["DAGSTER_HOME"] == "/opt/dagster/dagster_home"
        assert "DAGSTER_PG_PASSWORD" in variables(job)
        assert {"name": "neumf-home", "mountPath": "/var/lib/neumf"} in inside["volumeMounts"]
        claim = {"claimName": "neumf-home"}
        assert {"name": "neumf-home", "persistentVolumeClaim": claim} in pod["volumes"]
        assert {"secretRef": {"name": "neumf-storage"}} in inside["envFrom"]
        assert inside["image"] == "registry.example.org/neumf-assets:0.1.0"
        assert pod["securityContext"] == {"fsGroup": 990, "fsGroupChangePolicy": "OnRootMismatch"}
        assert pod["serviceAccountName"].endswith("user-deployments"), "which may make Jobs"
        assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 172800)


def test_every_pod_asks_for_what_is_meant_and_nothing_else(made: Make) -> None:
    found = made("cuda")
    [deployment] = values()["dagster-user-deployments"]["deployments"]
    assert container(found["run"])["resources"] == deployment["resources"]
    for item in stages(study()):
        resources = request_tags(study(), item)[KUBERNETES_TAG]["container_config"]["resources"]
        assert container(found[item.path])["resources"] == resources
    gpus = {path for path, job in found.items() if "nvidia.com/gpu" in container(job)["resources"]["limits"]}
    assert gpus == {item.path for item in stages(study()) if item.uses_device}


def test_no_pod_starts_more_threads_than_it_asks_for_processors(made: Make) -> None:
    asked = {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1"}}
    for job in made().values():
        sources = {item["name"]: item.get("valueFrom") for item in container(job)["env"]}
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"):
            assert sources[name] == asked


def test_a_limit_of_the_code_server_is_none_of_its_steps(made: Make) -> None:
    found = copy.deepcopy(values())
    [deployment] = found["dagster-user-deployments"]["deployments"]
    deployment["resources"]["limits"]["cpu"] = "500m"
    jobs = made("cpu", found)
    assert container(jobs["run"])["resources"]["limits"]["cpu"] == "500m"
    for path, job in jobs.items():
        check_object(job)
        assert path == "run" or "cpu" not in container(job)["resources"]["limits"]


def _resources(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    return found


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda job: job["spec"].update(ttlSecondsAfterFinish=5), "ttlSecondsAfterFinish"),
        (lambda job: job["spec"]["template"]["spec"]["containers"][0].update(resourcez={}), "resourcez"),
        (lambda job: job["spec"].update(backoffLimit="none"), "backoffLimit"),
        (lambda job: _resources(job)["limits"].update(memory="8GiB"), "memory has an amount that is no"),
        (lambda job: _resources(job)["limits"].update(memory="1Mi"), "memory asks for"),
        (lambda job: _resources(job)["limits"].update({"nvidia.com/gpu": "0.5"}), "whole number"),
        (lambda job: _resources(job)["requests"].update({"nvidia.com/gpu": "1"}), "needs a limit"),
        (lambda job: job["spec"]["template"]["spec"].update(volumes=[]), "there is no volume 'neumf-home'"),
        (lambda job: job["metadata"]["labels"].update(step="a/b"), "no value of a label"),
    ],
)
def test_a_wrong_job_is_refused(made: Make, spoil: Callable[[dict[str, Any]], None], said: str) -> None:
    job = made()["counts"]
    check_object(job)
    spoil(job)
    with pytest.raises(Refused, match=said):
        check_object(job)


def test_the_executor_is_dagsters_for_kubernetes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("dagster_k8s"), "dagster-k8s")
    monkeypatch.setenv("NEUMF_EXECUTOR", "kubernetes")
    assert executor().name == "k8s"


def test_an_instance_that_knows_no_cluster_says_what_to_set(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(importlib.util.find_spec("dagster_k8s"), "dagster-k8s")
    folders = Home.from_environment()
    folders.prepare()
    monkeypatch.setenv("NEUMF_EXECUTOR", "kubernetes")
    create = executor().executor_creation_fn
    assert create is not None
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        context = dg.InitExecutorContext(InMemoryJob(_a_job), executor(), {}, instance)
        with pytest.raises(BadSettings, match=r"LocalRunLauncher.*K8sRunLauncher"):
            create(context)


@pytest.mark.parametrize(
    ("inside", "given", "used"),
    [
        (True, {}, {"load_incluster_config": True, "kubeconfig_file": None}),
        (False, {}, {}),
        (True, {"kubeconfig_file": "mine"}, {"kubeconfig_file": "mine"}),
    ],
)
def test_a_runs_pod_finds_its_cluster_by_its_own_account(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inside: bool,
    given: dict[str, Any],
    used: dict[str, Any],
) -> None:
    """The launcher may have reached the cluster from outside, by a file that the pod does not have."""
    need(importlib.util.find_spec("dagster_k8s"), "dagster-k8s")
    import dagster_k8s

    seen: list[dict[str, Any]] = []

    def create(context: dg.InitExecutorContext) -> None:
        seen.append(dict(context.executor_config))

    monkeypatch.setattr(dagster_k8s.k8s_job_executor, "_executor_creation_fn", create)
    monkeypatch.setenv("NEUMF_EXECUTOR", "kubernetes")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    if not inside:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    outside = {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
    write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")
    launcher = dagster_k8s.K8sRunLauncher(**{**launcher_config(values()), **outside})
    with dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.setattr(type(instance), "run_launcher", launcher)
        made = executor().executor_creation_fn
        assert made is not None
        made(dg.InitExecutorContext(InMemoryJob(_a_job), executor(), given, instance))
    assert seen == [used]


@dg.op
def _nothing() -> None:
    pass


@dg.job
def _a_job() -> None:
    _nothing()

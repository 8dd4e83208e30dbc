"""The values for Dagster's Helm chart and the requests of steps, as far as they can be checked without a cluster.

Checked: the chart's keys (a list of those used, from the chart's own schema), and every part that becomes a
Kubernetes object against the Kubernetes client's models. Not run: ``helm template``, and an installation.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from neumf_assets.assets.catalogue import stages
from neumf_assets.executors import executor
from neumf_assets.settings import StudySettings
from neumf_assets.step_requests import KUBERNETES_TAG, request_tags
from neumf_assets_tests.conftest import need

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
QUANTITY = re.compile(r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")
RESOURCES = {"requests": {"cpu", "memory"}, "limits": {"memory"}}
# Keys that the chart's schema (DagsterHelmValues) knows, those used here; a set names a free-form object's keys.
CHART: dict[str, Any] = {
    "global": {"dagsterHome", "postgresqlSecretName"},
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
                    "containerConfig": {"resources": RESOURCES},
                    "jobSpecConfig": {"ttlSecondsAfterFinished": int},
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
        "runMonitoring": dict,
        "runRetries": dict,
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


def _values() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "values.yaml").read_text())


def test_the_values_use_keys_and_types_of_the_chart() -> None:
    _check(_values(), CHART, "values")


def test_a_key_that_the_chart_does_not_know_is_found() -> None:
    values = _values()
    values["runLauncher"]["config"]["k8sRunLauncher"]["resource"] = {}
    with pytest.raises(AssertionError, match=r"values\.runLauncher\.config\.k8sRunLauncher"):
        _check(values, CHART, "values")


def test_the_deployment_runs_steps_as_pods_that_see_the_same_home() -> None:
    [deployment] = _values()["dagster-user-deployments"]["deployments"]
    env = {item["name"]: item["value"] for item in deployment["env"]}
    assert env["NEUMF_EXECUTOR"] == "kubernetes"
    assert [mount["mountPath"] for mount in deployment["volumeMounts"]] == [env["NEUMF_HOME"]]
    assert {v["name"] for v in deployment["volumes"]} == {m["name"] for m in deployment["volumeMounts"]}
    assert deployment["includeConfigInLaunchedRuns"] == {"enabled": True}
    assert deployment["codeServerArgs"] == ["-m", "neumf_assets.definitions"]


def _study() -> StudySettings:
    return StudySettings.model_validate(yaml.safe_load((FOLDER / "study.yaml").read_text()))


def test_every_asset_asks_for_what_the_study_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMF_DEVICE", "cuda")
    study = _study()
    assert set(study.requests) <= {name for item in stages(study) for name in (item.path, item.group)}
    tags = {item.path: request_tags(study, item)[KUBERNETES_TAG] for item in stages(study)}
    found = {path: tag["container_config"]["resources"] for path, tag in tags.items()}
    for amounts in found.values():
        assert all(QUANTITY.match(one) for part in amounts.values() for one in part.values())
    assert found["raw_counts"]["requests"] == {"cpu": "1000m", "memory": "4096Mi"}
    assert found["ineumf/model"]["limits"] == {"memory": "8192Mi", "nvidia.com/gpu": "1"}
    assert "nvidia.com/gpu" not in found["report"]["limits"]


def test_kubernetes_own_models_accept_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("dagster_k8s"), "dagster-k8s")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dagster_k8s.job import UserDefinedDagsterK8sConfig
    study = _study()
    for item in stages(study):
        UserDefinedDagsterK8sConfig.from_dict(request_tags(study, item)[KUBERNETES_TAG])
    values = _values()
    [deployment] = values["dagster-user-deployments"]["deployments"]
    container = {"env": deployment["env"], "resources": deployment["resources"]}
    container["volume_mounts"] = deployment["volumeMounts"]
    pod = {"volumes": deployment["volumes"]}
    UserDefinedDagsterK8sConfig.from_dict({"container_config": container, "pod_spec_config": pod})
    run = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    UserDefinedDagsterK8sConfig.from_dict(
        {"container_config": run["containerConfig"], "job_spec_config": run["jobSpecConfig"]}
    )
    for part in ("dagsterDaemon", "dagsterWebserver"):
        UserDefinedDagsterK8sConfig.from_dict({"container_config": {"resources": values[part]["resources"]}})
    with pytest.raises(Exception, match="resourcez"):
        UserDefinedDagsterK8sConfig.from_dict({"container_config": {"resourcez": {}}})


def test_the_executor_is_dagsters_for_kubernetes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("dagster_k8s"), "dagster-k8s")
    monkeypatch.setenv("NEUMF_EXECUTOR", "kubernetes")
    assert executor().name == "k8s"

"""Our values in the hands of Dagster's Helm chart itself, for whoever has it.

``NEUMF_DAGSTER_CHART`` names the unpacked chart (a folder with ``values.yaml`` and ``values.schema.json``). Where
``helm`` is installed too, what it makes of chart and values is checked object by object. Neither can be installed
from Python's or Debian's packages, so these tests skip without them, in continuous integration too; that they
would find a mistake is tried on a chart made up here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from neumf_assets_tests.conftest import need
from neumf_assets_tests.running.kubernetes.chart import (
    FOLDER,
    NAMESPACE,
    RELEASE,
    container,
    container_context,
    image,
    jobs,
    launcher_config,
    values,
    variables,
)
from neumf_assets_tests.running.kubernetes.objects import Refused, check_object
from neumf_assets_tests.running.kubernetes.stand_in import write_kubeconfig

CONTEXT = "DAGSTER_CONTAINER_CONTEXT"


@pytest.fixture
def chart() -> Path:
    """The unpacked chart."""
    named = os.environ.get("NEUMF_DAGSTER_CHART")
    if not named:
        pytest.skip("NEUMF_DAGSTER_CHART does not name Dagster's Helm chart")
    return Path(named)


@pytest.fixture(autouse=True)
def schemas() -> None:
    need(importlib.util.find_spec("dagster_k8s"), "dagster-k8s")
    need(importlib.util.find_spec("kubernetes_validate"), "kubernetes-validate")


def merged(defaults: Any, ours: Any) -> Any:
    """Values as Helm merges them: mappings key by key, all else replaced, null takes a key away."""
    if not isinstance(defaults, dict) or not isinstance(ours, dict):
        return ours
    both = {
        key: merged(defaults[key], ours[key]) if key in defaults else ours[key]
        for key in ours
        if ours[key] is not None
    }
    return {**{key: value for key, value in defaults.items() if key not in ours}, **both}


def schema_errors(chart: Path, found: Any) -> list[str]:
    """Where values break the chart's schema."""
    import jsonschema
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT7

    schema = json.loads((chart / "values.schema.json").read_text())
    known = Resource.from_contents(_kubernetes_definitions(), default_specification=DRAFT7)
    anything = Resource.from_contents({}, default_specification=DRAFT7)
    registry: Any = Registry(retrieve=lambda uri: known if uri.endswith("_definitions.json") else anything)
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft7Validator)
    errors = validator(schema, registry=registry).iter_errors(found)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def _kubernetes_definitions() -> dict[str, Any]:
    """The definitions of Kubernetes that charts refer to by address, out of ``kubernetes-validate``."""
    from kubernetes_validate.utils import all_versions, schema_contents

    newest = all_versions()[-1]
    found = schema_contents(f"kubernetes-json-schema/v{newest}-local/_definitions.json", newest)
    return {"definitions": found["$defs"], "$defs": found["$defs"]}


def rendered(chart: Path) -> list[dict[str, Any]]:
    """The objects that ``helm template`` prints."""
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not installed")
    command = [helm, "template", RELEASE, str(chart), "--namespace", NAMESPACE]
    done = subprocess.run(
        [*command, "--values", str(FOLDER / "values.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def check_rendered(objects: list[dict[str, Any]], kubeconfig: Path) -> None:
    """Kubernetes accepts the objects, and runs and steps get the pods that we think they get."""
    for found in objects:
        check_object(found)
    secrets = {found["metadata"]["name"] for found in objects if found["kind"] == "Secret"}
    assert values()["global"]["postgresqlSecretName"] not in secrets
    instance = yaml.safe_load(_one(objects, "ConfigMap", "instance")["data"]["dagster.yaml"])
    ours = values()
    [deployment] = ours["dagster-user-deployments"]["deployments"]
    server = _one(objects, "Deployment", f"-{deployment['name']}")["spec"]["template"]["spec"]["containers"][
        0
    ]
    [context] = [json.loads(item["value"]) for item in server["env"] if item["name"] == CONTEXT]
    assert server["args"][-2:] == deployment["codeServerArgs"]
    assert instance["run_monitoring"]["max_resume_run_attempts"] == 3
    assert instance["run_retries"]["retry_on_asset_or_op_failure"] is True
    thought = jobs(launcher_config(ours), container_context(deployment), image(deployment), kubeconfig)
    found_jobs = jobs(instance["run_launcher"]["config"], context, server["image"], kubeconfig)
    for name, job in found_jobs.items():
        check_object(job)
        assert _what_matters(job) == _what_matters(thought[name]), name


def _one(objects: list[dict[str, Any]], kind: str, ending: str) -> dict[str, Any]:
    names = [found["metadata"]["name"] for found in objects if found["kind"] == kind]
    [found] = [x for x in objects if x["kind"] == kind and x["metadata"]["name"].endswith(ending)] or [None]
    assert found is not None, f"no {kind} …{ending} among {names}"
    return found


def _what_matters(job: Mapping[str, Any]) -> dict[str, Any]:
    pod, inside = job["spec"]["template"]["spec"], container(job)
    return {
        "image": inside["image"],
        "variables": variables(job),
        "secrets": [source["secretRef"]["name"] for source in inside["envFrom"] if "secretRef" in source],
        "resources": inside["resources"],
        "mounts": inside["volumeMounts"],
        "volumes": pod["volumes"],
        "security": pod.get("securityContext"),
        "deadline": job["spec"].get("activeDeadlineSeconds"),
    }


def test_the_charts_schema_accepts_our_values(chart: Path) -> None:
    defaults = yaml.safe_load((chart / "values.yaml").read_text())
    assert schema_errors(chart, merged(defaults, values())) == []


def test_helm_makes_what_kubernetes_accepts_and_we_expect(chart: Path, tmp_path: Path) -> None:
    check_rendered(rendered(chart), write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1"))


REMOTE = "https://charts.example.org/v1.18.0/_definitions.json#/definitions/io.k8s.api.core.v1"


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A chart with little in it."""
    schema = {
        "type": "object",
        "required": ["generatePostgresqlPasswordSecret", "busybox"],
        "properties": {
            "generatePostgresqlPasswordSecret": {"type": "boolean"},
            "dagsterWebserver": {"properties": {"resources": {"$ref": f"{REMOTE}.ResourceRequirements"}}},
            "ingress": {"$ref": "https://charts.example.org/other.json"},
        },
    }
    (tmp_path / "values.schema.json").write_text(json.dumps(schema))
    (tmp_path / "values.yaml").write_text(
        "busybox: {image: {tag: '1'}}\ngeneratePostgresqlPasswordSecret: true\ningress: {enabled: true, hosts: []}\n"
    )
    return tmp_path


def test_helm_merges_mappings_and_replaces_the_rest(made_up: Path) -> None:
    defaults = yaml.safe_load((made_up / "values.yaml").read_text())
    found = merged(defaults, {**values(), "busybox": None})
    assert found["generatePostgresqlPasswordSecret"] is False
    assert found["ingress"] == {"enabled": False, "hosts": []}
    assert "busybox" not in found


def test_what_breaks_a_charts_schema_is_found(made_up: Path) -> None:
    defaults = yaml.safe_load((made_up / "values.yaml").read_text())
    assert schema_errors(made_up, merged(defaults, values())) == []
    wrong = {**values(), "generatePostgresqlPasswordSecret": "no", "busybox": None}
    wrong["dagsterWebserver"] = {"resources": {"limits": ["1Gi"]}}
    found = "\n".join(schema_errors(made_up, merged(defaults, wrong)))
    assert "'busybox' is a required property" in found
    assert "generatePostgresqlPasswordSecret: 'no' is not of type 'boolean'" in found
    assert "dagsterWebserver.resources.limits" in found


def _objects() -> list[dict[str, Any]]:
    """What ``helm template`` would print if the chart did what we think it does, and nothing else."""
    ours = values()
    [deployment] = ours["dagster-user-deployments"]["deployments"]
    retries, monitoring = ours["dagsterDaemon"]["runRetries"], ours["dagsterDaemon"]["runMonitoring"]
    instance = {
        "run_launcher": {"config": launcher_config(ours)},
        "run_monitoring": {"max_resume_run_attempts": monitoring["maxResumeRunAttempts"]},
        "run_retries": {"retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"]},
    }
    server = {
        "name": "server",
        "image": image(deployment),
        "args": ["dagster", "code-server", "start", *deployment["codeServerArgs"]],
        "env": [{"name": CONTEXT, "value": json.dumps(container_context(deployment))}],
    }
    labels = {"app": "server"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [server]}}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{RELEASE}-dagster-instance"},
            "data": {"dagster.yaml": yaml.safe_dump(instance)},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": f"{RELEASE}-dagster-user-deployments-{deployment['name']}"},
            "spec": {"selector": {"matchLabels": labels}, "template": pod},
        },
    ]


@pytest.mark.parametrize(
    ("what", "raised"), [("secret", AssertionError), ("field", Refused), ("resources", AssertionError)]
)
def test_what_is_wrong_with_rendered_objects_is_found(
    tmp_path: Path, what: str, raised: type[Exception]
) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")
    check_rendered(_objects(), kubeconfig)
    objects = _objects()
    [server] = objects[1]["spec"]["template"]["spec"]["containers"]
    if what == "secret":
        name = values()["global"]["postgresqlSecretName"]
        objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}})
    elif what == "field":
        server["resourcez"] = {}
    else:
        server["env"][0]["value"] = server["env"][0]["value"].replace("1536Mi", "2048Mi")
    with pytest.raises(raised):
        check_rendered(objects, kubeconfig)

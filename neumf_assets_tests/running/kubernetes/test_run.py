"""Runs of a real study on the stand-in for Kubernetes: a pod for each run and step, losses, and termination.

Everything but the cluster is what a deployment runs: the code server as the chart starts it, launches and
terminations as the web interface asks for them, dagster-k8s's run launcher and step handler, and the values of
``deploy/kubernetes/values.yaml``, whose volume is a folder here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.home import Home
from neumf_assets.study.names import partitions_name
from neumf_assets_tests.conftest import need
from neumf_assets_tests.e2e.asking import cancel, ended, launch
from neumf_assets_tests.e2e.servers import BIN, Server, free_port, listening, wait_for
from neumf_assets_tests.running.kubernetes.chart import (
    RELEASE,
    container,
    container_context,
    image,
    launcher_config,
)
from neumf_assets_tests.running.kubernetes.chart import values as chart_values
from neumf_assets_tests.running.kubernetes.stand_in import (
    KubernetesStandIn,
    Pod,
    kubernetes_stand_in,
    write_kubeconfig,
)

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[3]
STUDY = """
name: tiny
inbox: {inbox}
model: {{epochs: 3, pretrain_epochs: 2, tower: [16, 8], gmf_size: 8, mlp_size: 8, threads: 1}}
requests: {{model: {{cpus: 0.5, memory_mib: 300}}, ingest: {{cpus: 0.25, memory_mib: 200}}}}
"""


def _values(home: Path) -> dict[str, Any]:
    """Our values, with the folder in the place of the mounted volume and of the object storage."""
    text = json.dumps(chart_values()).replace("s3://neumf/storage", str(home / "storage"))
    found: dict[str, Any] = json.loads(text.replace("/var/lib/neumf", str(home)))
    found["global"]["dagsterHome"] = str(home.with_name("nowhere"))  # the image has no such folder
    return found


def _instance_settings(values: dict[str, Any], kubeconfig: Path) -> str:
    """``dagster.yaml`` as the chart writes it, with SQLite in the place of PostgreSQL, and without a queue."""
    outside = {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    monitoring, retries = values["dagsterDaemon"]["runMonitoring"], values["dagsterDaemon"]["runRetries"]
    settings = {
        "telemetry": {"enabled": False},
        "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"},
        "run_launcher": {
            "module": "dagster_k8s",
            "class": "K8sRunLauncher",
            "config": {**launcher_config(values), **outside},
        },
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
        },
        "run_retries": {
            "enabled": retries["enabled"],
            "max_retries": retries["maxRetries"],
            "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
        },
    }
    return yaml.safe_dump(settings)


@dataclass
class Cluster:
    """The stand-in with a deployment on it: what the web interface and the daemon would ask of it."""

    stand_in: KubernetesStandIn
    home: Home
    instance: dg.DagsterInstance
    workspace: Any

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        from dagster_graphql.test.utils import execute_dagster_graphql

        answer = execute_dagster_graphql(self.workspace.create_request_context(), query, variables)
        return dict(answer.data)

    read = ask

    def watch_runs(self) -> None:
        """One round of the daemon's run monitoring."""
        from dagster._daemon.monitoring import execute_run_monitoring_iteration

        errors = execute_run_monitoring_iteration(self.workspace, logging.getLogger("monitoring"))
        assert [error for error in errors if error] == []

    def retry(self, run: str) -> str:
        """The daemon's look at a failed run; the run that it starts in its place."""
        from dagster._daemon.auto_run_reexecution.auto_run_reexecution import (
            consume_new_runs_for_automatic_reexecution,
        )

        failed = self.instance.get_run_records(dg.RunsFilter(run_ids=[run]))
        list(consume_new_runs_for_automatic_reexecution(self.workspace, failed, logging.getLogger("retries")))
        [again] = self.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run}))
        return again.run_id

    @contextlib.contextmanager
    def held(self, asset: str) -> Iterator[None]:
        """Hold steps of an asset until the end of the body."""
        (self.home.root / "held").unlink(missing_ok=True)
        (self.home.root / "hold").write_text(asset)
        try:
            yield
        finally:
            (self.home.root / "hold").unlink()

    def holding(self, run: str) -> tuple[Pod, Pod]:
        """The pods of a run and of its step, once the step is held."""
        wait_for((self.home.root / "held").exists, "the step at work", every=0.1)
        worker, step = self.pods(run)
        assert (worker.exit_code, step.exit_code) == (None, None)
        return worker, step

    def pods(self, run: str) -> list[Pod]:
        return [pod for pod in self.stand_in.pods if pod.labels["dagster/run-id"] == run]

    def versions(self) -> dict[str, str]:
        """The current version of every artifact; every file of it is there, whole, and nothing else is."""
        storage, found = Path(self.home.storage), {}
        for path in sorted(storage.rglob("manifest.json")):
            content = json.loads(path.read_text())
            for name, size in content["files"].items():
                assert (path.parent / content["version"] / name).stat().st_size == size
            found[str(path.parent.relative_to(storage))] = content["version"]
        return found

    def said(self, run: str) -> str:
        """What the run's events say, and the end of every pod's log: for the message of a failed test."""
        events = [record.user_message or "" for record in self.instance.all_logs(run)]
        logs = [f"== {pod.name}\n{pod.log.read_text()[-2000:]}" for pod in self.pods(run) if pod.log.exists()]
        return "\n".join([*events, *logs])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with the deployment of our values and a study whose files have arrived."""
    for package in ("dagster_k8s", "kubernetes_validate"):
        need(importlib.util.find_spec(package), package)
    root = tmp_path_factory.mktemp("kubernetes")
    home = Home(root=root / "home", storage=str(root / "home" / "storage"))
    values = _values(home.root)
    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        for name in os.environ:
            if name.startswith(("NEUMF_", "DAGSTER_")) or name.lower().endswith("_proxy"):
                environment.delenv(name)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        inside = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        stand_in = stack.enter_context(kubernetes_stand_in(root / "pods", **inside))
        kubeconfig = write_kubeconfig(root / "kubeconfig", stand_in.url)
        _prepare(home, values, stand_in, kubeconfig)
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home.dagster)))
        instance.add_dynamic_partitions(partitions_name("tiny"), ["ctrl"])
        workspace = stack.enter_context(_workspace(instance, _code_server(stack, root, values, stand_in)))
        yield Cluster(stand_in, home, instance, workspace)
        assert stand_in.refused == []


def _prepare(home: Home, values: dict[str, Any], stand_in: KubernetesStandIn, kubeconfig: Path) -> None:
    """What is needed beforehand, according to ``values.yaml``, and the study."""
    simulated = {"datasets": [["ctrl", 120, "control"]], "genes": 400, "seed": 3}
    inbox = home.root / "inbox" / "tiny"
    write_inbox(SimulatorSettings.model_validate(simulated), inbox)
    home.studies.mkdir(parents=True)
    (home.studies / "tiny.yaml").write_text(STUDY.format(inbox=inbox))
    home.dagster.mkdir(parents=True)
    (home.dagster / "dagster.yaml").write_text(_instance_settings(values, kubeconfig))
    stand_in.claims.add("neumf-home")
    stand_in.secrets["neumf-storage"] = {"AWS_ACCESS_KEY_ID": "test"}
    stand_in.secrets["dagster-postgresql-secret"] = {"postgresql-password": "secret"}
    stand_in.config_maps[f"{RELEASE}-dagster-user-deployments-neumf-user-env"] = {}


def _code_server(
    stack: contextlib.ExitStack, root: Path, values: dict[str, Any], stand_in: KubernetesStandIn
) -> int:
    """Start the code server as the chart does; returns its port."""
    [deployment] = values["dagster-user-deployments"]["deployments"]
    port = free_port()
    arguments = [
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-m",
        "neumf_assets_tests.running.kubernetes.holding_definitions",
    ]
    given = {
        "DAGSTER_HOME": values["global"]["dagsterHome"],
        "DAGSTER_CURRENT_IMAGE": image(deployment),
        "DAGSTER_CONTAINER_CONTEXT": json.dumps(container_context(deployment)),
        **{item["name"]: item["value"] for item in deployment["env"] if "value" in item},
    }
    server = Server(
        [str(BIN / "dagster"), "code-server", "start", *arguments],
        root / "code.log",
        env={**stand_in.environment, **given},
        cwd=root,
    )
    stack.callback(server.kill)
    server.start()
    wait_for(lambda: listening(port), "the code server", every=0.2)
    return port


@contextlib.contextmanager
def _workspace(instance: dg.DagsterInstance, port: int) -> Iterator[Any]:
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import GrpcServerTarget

    target = GrpcServerTarget("127.0.0.1", port, None, "neumf_assets")

    def loaded() -> Any:
        found = WorkspaceProcessContext(instance, target)
        [entry] = found.create_request_context().get_code_location_entries().values()
        if entry.code_location is not None:
            return found
        found.__exit__(None, None, None)
        return None

    with wait_for(loaded, "the study's definitions", 120) as found:
        yield found


def test_a_run_is_a_pod_and_so_is_each_of_its_steps(cluster: Cluster) -> None:
    run = launch(cluster, "train", "ctrl", "raw_counts", "counts", "neumf_model")
    assert ended(cluster, run) == "SUCCESS", cluster.said(run)
    worker, *steps = cluster.pods(run)
    assert worker.labels["app.kubernetes.io/component"] == "run_worker"
    operations = [step.labels["dagster/op"] for step in steps]
    assert operations == ["tiny__raw_counts", "tiny__counts", "tiny__neumf_model"]
    wait_for(lambda: all(pod.exit_code is not None for pod in cluster.pods(run)), "the end of the pods")
    assert [pod.exit_code for pod in cluster.pods(run)] == [0, 0, 0, 0]
    asked = [container(cluster.stand_in.jobs[step.job])["resources"]["requests"] for step in steps]
    assert asked[0] == asked[1] == {"cpu": "250m", "memory": "200Mi"}
    assert asked[2] == {"cpu": "500m", "memory": "300Mi"}
    model = NeuMFModel.load(cluster.home.store().get(("tiny", "neumf_model", "ctrl")).path)
    assert [row["epoch"] for row in model.history if row["stage"] == "gmf"] == [1, 2]
    assert not cluster.home.root.with_name("nowhere").exists(), "the image's user could not make it"
    assert not cluster.home.run_locks.exists(), "pods on other nodes might take a lock for a sign of death"


def test_a_step_whose_pod_is_lost_fails_its_run_which_is_tried_once_more(cluster: Cluster) -> None:
    before = cluster.versions()
    with cluster.held("raw_counts"):
        run = launch(cluster, "train", "ctrl", "raw_counts")
        worker, step = cluster.holding(run)
        step.kill()
        assert ended(cluster, run) == "FAILURE", cluster.said(run)
    assert f"Discovered failed Kubernetes job {step.job}" in cluster.said(run)
    assert cluster.versions() == before
    assert not list(Path(cluster.home.storage).rglob(".tmp-*"))
    again = cluster.retry(run)
    assert ended(cluster, again) == "SUCCESS", cluster.said(again)
    assert cluster.versions().get("tiny/raw_counts/ctrl") != before.get("tiny/raw_counts/ctrl")
    wait_for(lambda: worker.exit_code == 0, "the end of the run's pod", 30)


def test_a_cancelled_run_ends_with_its_pods(cluster: Cluster) -> None:
    before = cluster.versions()
    with cluster.held("raw_counts"):
        run = launch(cluster, "train", "ctrl", "raw_counts")
        worker, step = cluster.holding(run)
        cancel(cluster, run)
        assert not cluster.stand_in.exists(worker.job)
        assert ended(cluster, run) == "CANCELED", cluster.said(run)
        wait_for(lambda: worker.exit_code is not None, "the end of the run's pod", 30)
        wait_for(lambda: step.exit_code is not None, "the end of the step's pod", 30)
    assert cluster.versions() == before


def test_a_run_whose_pod_is_lost_goes_on_in_another(cluster: Cluster) -> None:
    with cluster.held("raw_counts"):
        run = launch(cluster, "train", "ctrl", "raw_counts")
        worker, step = cluster.holding(run)
        worker.kill()
        cluster.watch_runs()
    assert ended(cluster, run) == "SUCCESS", cluster.said(run)
    assert [pod.job for pod in cluster.pods(run)] == [worker.job, step.job, f"{worker.job}-1"]

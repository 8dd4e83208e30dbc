"""Steps of a study as jobs of a real Ray cluster on this machine, each with its own request."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from neumf_assets.assets.catalogue import stages
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.definitions.studies import find_or_register
from neumf_assets.home import Home
from neumf_assets.running.executors import executor
from neumf_assets.running.step_requests import RAY_TAG, request_tags
from neumf_assets.study.names import partitions_name
from neumf_assets.study.settings import StudySettings
from neumf_assets_tests.conftest import need
from neumf_assets_tests.e2e.servers import free_port, wait_for
from neumf_assets_tests.ray_cluster import only_cluster

TINY = """
model: {epochs: 3, pretrain_epochs: 2, tower: [16, 8], gmf_size: 8, mlp_size: 8, threads: 1, workers: 2}
requests: {model: {cpus: 0.5, memory_mib: 300}, ingest: {cpus: 0.25, memory_mib: 200}}
"""


@pytest.fixture
def jobs_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address for jobs of a Ray cluster with two processors."""
    need(importlib.util.find_spec("ray") and importlib.util.find_spec("dagster_ray"), "ray")
    port = free_port()
    for name, value in {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    arguments = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    arguments |= {"num_cpus": 2, "object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
    with only_cluster():
        cluster = Cluster(initialize_head=True, head_node_args={**arguments, "memory": 2**30})
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: _takes_jobs(address), "the cluster's agent for jobs")
            yield address
        finally:
            cluster.shutdown()


def _takes_jobs(address: str) -> bool:
    """Whether a job can be submitted: the agent that takes them starts after the cluster, on a busy machine long
    after."""
    from ray.job_submission import JobSubmissionClient

    with contextlib.suppress(RuntimeError, ConnectionError):
        JobSubmissionClient(address).submit_job(entrypoint="true")
        return True
    return False


@pytest.mark.e2e
@pytest.mark.slow
def test_steps_are_jobs_of_the_cluster_and_workers_train_on_it(
    home: Path, jobs_address: str, tmp_path: Path
) -> None:
    folders = Home.from_environment()
    folders.prepare()
    simulated = {"datasets": [["ctrl", 120, "control"]], "genes": 400, "seed": 3}
    write_inbox(SimulatorSettings.model_validate(simulated), tmp_path / "inbox")
    find_or_register(folders, "tiny", str(tmp_path / "inbox"))
    path = folders.studies / "tiny.yaml"
    path.write_text(path.read_text() + TINY)
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        instance.add_dynamic_partitions(partitions_name("tiny"), ["ctrl"])
    selection = "key:tiny/raw_counts or key:tiny/counts or key:tiny/neumf_model"
    command = ["-m", "dagster", "asset", "materialize", "-m", "neumf_assets.definitions"]
    done = subprocess.run(
        [sys.executable, *command, "--select", selection, "--partition", "ctrl"],
        env={
            **os.environ,
            "NEUMF_EXECUTOR": "ray",
            "RAY_API_SERVER_ADDRESS": jobs_address,
            "DAGSTER_HOME": str(folders.dagster),
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    steps = _ended_jobs(jobs_address)
    assert sorted(steps) == ["tiny__counts", "tiny__neumf_model", "tiny__raw_counts"]
    assert {job["status"] for job in steps.values()} == {"SUCCEEDED"}
    model = NeuMFModel.load(folders.store().get(("tiny", "neumf_model", "ctrl")).path)
    assert model.settings.workers == 2
    assert [row["epoch"] for row in model.history if row["stage"] == "gmf"] == [1, 2]


def _ended_jobs(address: str) -> dict[str, dict[str, object]]:
    """The jobs of steps by step, once all have ended; a step is over a little before its job."""
    for _ in range(120):
        with urllib.request.urlopen(f"{address}/api/jobs/") as answer:
            submitted = [job for job in json.load(answer) if "dagster/op" in (job["metadata"] or {})]
        if all(job["status"] not in ("PENDING", "RUNNING") for job in submitted):
            break
        time.sleep(0.5)
    return {job["metadata"]["dagster/op"]: job for job in submitted}


def _requested(settings: dict[str, object]) -> dict[str, dict[str, float]]:
    study = StudySettings.model_validate({"name": "a", **settings})
    return {item.path: request_tags(study, item)[RAY_TAG] for item in stages(study)}


def test_every_step_has_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUMF_EXECUTOR", raising=False)
    monkeypatch.setenv("NEUMF_DEVICE", "cuda")
    requests = {"integrate": {"cpus": 4}, "liger/factors": {"memory_mib": 8000}}
    found = _requested({"requests": requests})
    assert found["raw_counts"] == {"num_cpus": 1, "num_gpus": 0, "memory": 2048 * 2**20}
    assert found["neumf_model"]["num_gpus"] == 1
    assert found["ineumf/model"] == {"num_cpus": 4, "num_gpus": 1, "memory": 2048 * 2**20}
    assert found["liger/factors"] == {"num_cpus": 1, "num_gpus": 1, "memory": 8000 * 2**20}
    monkeypatch.setenv("NEUMF_DEVICE", "auto")
    monkeypatch.setenv("NEUMF_EXECUTOR", "ray")
    found = _requested({"model": {"workers": 2}, "liger": {"workers": 2}})
    assert found["liger/factors"]["num_cpus"] == 0, "two workers on two processors would wait for ever"
    assert found["neumf_liger/factors"]["num_cpus"] == 1
    assert found["neumf_model"]["num_gpus"] == 0, "a cluster without a GPU would never run it"
    assert found["neumf_model"]["num_cpus"] == 0, "its workers hold the processors"


@pytest.mark.parametrize(("name", "package"), [("ray", "dagster_ray"), ("kubernetes", "dagster_k8s")])
def test_a_cluster_without_its_package_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setenv("NEUMF_EXECUTOR", name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadSettings, match=rf"pip install 'neumf-assets\[{name}\]'"):
        executor()

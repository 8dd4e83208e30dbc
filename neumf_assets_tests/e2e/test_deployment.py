"""The deployment of ``deploy/`` for real: PostgreSQL, S3, code server, webserver and daemon, and their faults."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from neumf_assets_tests.e2e.asking import add_datasets, cancel, ended, launch, quiet, runs, status
from neumf_assets_tests.e2e.servers import (
    DEPLOY,
    Deployment,
    ObjectStore,
    Postgres,
    Server,
    environment_file,
    object_store,
    postgres,
    unit,
    wait_for,
)

pytestmark = pytest.mark.e2e

# A simulated study's sensors are off, so every run here is asked for by a test.
STUDY = """
name: tiny
simulate: {datasets: [[ctrl, 120, control], [stim, 100, stimulated]], genes: 400, seed: 3}
label_column: cell_type
arms: [liger]
model: {kind: gmf, gmf_size: 4, epochs: 2, threads: 1}
evaluation: {baselines: [gene_mean]}
liger: {k: 5, iterations: 5, trial_iterations: 1}
clusters: {resolutions: [0.4], default_resolution: 0.4, seeds: [0], hdbscan_min_size: 10}
umap: {n_epochs: 10}
"""
DATASETS = ("ctrl", "stim")


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, database: Postgres, bucket: ObjectStore
) -> Iterator[Deployment]:
    """The services, up, with one registered study."""
    home = tmp_path_factory.mktemp("site") / "home"
    keys = {
        **database.environment(),
        **bucket.environment(),
        "NEUMF_STORAGE": f"s3://{bucket.bucket}/storage",
    }
    deployment = Deployment(home, keys)
    _hasten(home / "dagster" / "dagster.yaml")
    (home / "studies").mkdir()
    (home / "studies" / "tiny.yaml").write_text(STUDY)
    try:
        deployment.up()
        yield deployment
    finally:
        deployment.down()


def _hasten(file: Path) -> None:
    """Monitoring that looks every few seconds, so that a test need not wait for minutes."""
    text = file.read_text()
    assert "poll_interval_seconds: 30" in text
    file.write_text(text.replace("poll_interval_seconds: 30", "poll_interval_seconds: 3"))


def _worker(site: Deployment, run: str) -> int:
    """The process that executes a run, which says so in the file that it keeps locked."""
    file = site.home / "locks" / "runs" / run
    return int(
        wait_for(lambda: json.loads(file.read_text())["pid"] if file.exists() else None, f"run {run}", 120)
    )


@pytest.fixture(scope="module")
def built(site: Deployment) -> Deployment:
    """The study run through: a backfill of its datasets, then what needs them all."""
    add_datasets(site, *DATASETS)
    keys = ["raw_counts", "counts", "long_counts", "neumf_model", "neumf_evaluation", "dense_counts"]
    answer = site.ask(
        """mutation Backfill($backfill: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $backfill)
             { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
        backfill={
            "assetSelection": [{"path": ["tiny", key]} for key in keys],
            "partitionNames": list(DATASETS),
            "fromFailure": False,
        },
    )["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    wait_for(lambda: len(runs(site)) >= len(DATASETS), "the backfill's runs")
    wait_for(lambda: quiet(site), "the end of the backfill", 400)
    assert {run["status"] for run in runs(site).values()} == {"SUCCESS"}, site.logs()
    assert ended(site, launch(site, "integrate")) == "SUCCESS", site.logs()
    return site


def test_a_study_runs_through_on_postgresql_and_s3(
    built: Deployment, database: Postgres, bucket: ObjectStore
) -> None:
    counted = database.ask(
        "SELECT asset_key, count(*) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION' GROUP BY 1"
    )
    times = {"/".join(json.loads(key)[1:]): number for key, number in counted}
    assert times["raw_counts"] == times["neumf_model"] == times["dense_counts"] == len(DATASETS)
    assert times["report"] == times["integrated"] == times["liger/metrics"] == 1
    assert {row[0] for row in database.ask("SELECT DISTINCT status FROM runs")} == {"SUCCESS"}
    assert database.ask("SELECT count(*) FROM instigators") != []
    assert not (built.home / "dagster" / "history").exists(), "runs are kept in files as well"
    stored = bucket.objects()
    for dataset in DATASETS:
        manifest = f"storage/tiny/neumf_model/{dataset}/manifest.json"
        assert manifest in stored
        weights = [key for key in stored if f"neumf_model/{dataset}/" in key and key.endswith(".safetensors")]
        assert len(weights) == 1 and stored[weights[0]] > 0
    assert not (built.home / "storage").exists(), "artifacts are kept on the local disk as well"
    summary = json.loads((built.home / "results" / "tiny" / "summary.json").read_text())
    assert set(summary["datasets"]) == set(DATASETS)


def test_doctor_finds_the_deployment_well(built: Deployment) -> None:
    done = built.command("doctor", "--port", built.environment["NEUMF_PORT"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(Postgres), schema up to date" in done.stdout
    assert "its heartbeat is fresh" in done.stdout
    assert "s3://neumf/storage, written and read" in done.stdout
    assert "a Dagster web interface answers" in done.stdout


def test_a_cancelled_step_leaves_the_last_version_and_no_run_in_progress(
    built: Deployment, bucket: ObjectStore
) -> None:
    before = _version(bucket, "neumf_model", "ctrl")
    run = launch(built, "train", "ctrl")
    _worker(built, run)
    cancel(built, run)
    assert ended(built, run) in {"CANCELED", "SUCCESS"}
    assert _version(bucket, "neumf_model", "ctrl") >= before
    assert ended(built, launch(built, "train", "ctrl")) == "SUCCESS"


def test_a_killed_run_is_noticed_and_started_once_more(built: Deployment) -> None:
    run = launch(built, "train", "stim")
    os.kill(_worker(built, run), signal.SIGKILL)
    assert ended(built, run) == "FAILURE"
    again = wait_for(lambda: _retry_of(built, run), "the second try")
    assert ended(built, again) == "SUCCESS", built.logs()


def test_runs_survive_a_daemon_that_is_killed_and_started_again(built: Deployment) -> None:
    run = launch(built, "integrate")
    built.services["daemon"].kill()
    built.services["daemon"].start()
    assert ended(built, run) == "SUCCESS", built.logs()


def test_after_a_power_cut_nothing_stays_in_progress_and_the_work_is_done(
    built: Deployment, database: Postgres, bucket: ObjectStore
) -> None:
    before = _version(bucket, "neumf_model", "ctrl")
    run = launch(built, "train", "ctrl")
    worker = psutil.Process(_worker(built, run))
    for server in (*built.services.values(), database):
        server.kill()
    wait_for(
        lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the worker's end", 30
    )
    database.start()  # PostgreSQL recovers from its log
    assert _version(bucket, "neumf_model", "ctrl") >= before
    built.up()
    assert ended(built, run) in {"FAILURE", "SUCCESS"}
    if status(built, run) == "FAILURE":
        again = wait_for(lambda: _retry_of(built, run), "the second try")
        assert ended(built, again) == "SUCCESS", built.logs()
    assert quiet(built)


def test_a_database_that_goes_away_for_a_while_ends_no_service(built: Deployment, database: Postgres) -> None:
    assert built.ready()  # with a connection to each storage, all of which are about to break
    database.stop()
    time.sleep(3)
    database.start()
    for name, server in built.services.items():
        assert isinstance(server, Server) and server.process is not None
        assert server.process.poll() is None, f"{name} ended\n{built.logs()}"
    wait_for(built.ready, "the web interface's new connections", 120)
    assert ended(built, launch(built, "ingest", "ctrl")) == "SUCCESS", built.logs()


def test_object_storage_cut_off_in_mid_write_leaves_the_last_version_readable(
    built: Deployment, bucket: ObjectStore
) -> None:

    before = {key: size for key, size in bucket.objects().items() if "manifest" in key}
    bucket.wire.cut(after_bytes=30_000)
    run = launch(built, "ingest", "ctrl")
    assert ended(built, run) == "FAILURE"
    bucket.wire.mend()
    stored = bucket.objects()
    assert set(before) <= set(stored)
    for manifest in before:
        folder = manifest.removesuffix("/manifest.json")
        content = json.loads(bucket.client().get_object(Bucket=bucket.bucket, Key=manifest)["Body"].read())
        for name, size in content["files"].items():
            assert stored[f"{folder}/{content['version']}/{name}"] == size
    assert ended(built, launch(built, "ingest", "ctrl")) == "SUCCESS", built.logs()


def test_every_variable_that_the_settings_ask_for_is_in_the_environment_file() -> None:
    given = set(environment_file())
    text = (DEPLOY / "dagster.yaml").read_text() + (DEPLOY / "workspace.yaml").read_text()
    assert set(re.findall(r"env: (\w+)", text)) <= given
    for name in ("code", "webserver", "daemon"):
        assert set(re.findall(r"\$\{(\w+)\}", unit(name)["ExecStart"])) <= given


def test_services_listen_on_loopback_only() -> None:
    for name in ("code", "webserver"):
        assert "--host 127.0.0.1" in unit(name)["ExecStart"]


def _retry_of(site: Deployment, run: str) -> str | None:
    return next(
        (other for other, values in runs(site).items() if values["tags"].get("dagster/parent_run_id") == run),
        None,
    )


def _version(bucket: ObjectStore, asset: str, dataset: str) -> str:
    key = f"storage/tiny/{asset}/{dataset}/manifest.json"
    content = bucket.client().get_object(Bucket=bucket.bucket, Key=key)["Body"].read()
    return str(json.loads(content)["version"])

"""Runs of ``neumf-assets run`` in the web interface: at home there, and executed again from there."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from neumf_assets_tests.e2e.conftest import LOCATION, STUDY, Server, environment, wait_until, write_study

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("ui")]

_RUNS = """query Runs($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results {
             id status jobName repositoryOrigin { repositoryName repositoryLocationName }
             assetSelection { path } } } } }"""
_AGAIN = """mutation Again($run: String!, $strategy: ReexecutionStrategy!) {
              launchRunReexecution(reexecutionParams: { parentRunId: $run, strategy: $strategy }) { __typename
                ... on LaunchRunSuccess { run { id } } ... on PythonError { message } } }"""
_OVER = ("SUCCESS", "FAILURE", "CANCELED")


def _runs(server: Server, **wanted: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.ask(_RUNS, filter=wanted)["runsOrError"]["results"]
    return found


def _again(server: Server, run: str, strategy: str) -> str:
    """Execute a run again as its page does; the status in which that ends."""
    answer = server.ask(_AGAIN, run=run, strategy=strategy)["launchRunReexecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    new = answer["run"]["id"]

    def over() -> str | None:
        [found] = _runs(server, runIds=[new])
        return str(found["status"]) if found["status"] in _OVER else None

    return str(wait_until(over, f"the end of run {new}", 300))


def test_runs_of_the_command_line_belong_to_the_code_location(server: Server) -> None:
    tags = [{"key": ".dagster/repository", "value": f"__repository__@{LOCATION}"}]
    shown = _runs(server, tags=tags)
    assert {run["jobName"] for run in shown} == {f"{STUDY}_train", f"{STUDY}_integrate"}
    assert [run["id"] for run in shown] == [run["id"] for run in _runs(server)], "some have no origin"
    for run in shown:
        assert run["repositoryOrigin"] == {
            "repositoryName": "__repository__",
            "repositoryLocationName": LOCATION,
        }


def test_they_are_executed_again_from_the_web_interface(server: Server) -> None:
    trained = [run for run in _runs(server) if run["jobName"] == f"{STUDY}_train"]
    assert _again(server, trained[0]["id"], "ALL_STEPS") == "SUCCESS"
    # the file of this dataset is replaced by a bad one
    command = [sys.executable, "-m", "neumf_assets.cli", "run", "--study", STUDY]
    done = subprocess.run(command, env=environment(server.home), capture_output=True, check=False)
    assert done.returncode == 1, done.stdout.decode() + done.stderr.decode()
    failed = _runs(server, statuses=["FAILURE"])
    assert failed[0]["jobName"] == f"{STUDY}_train"
    assert _again(server, failed[0]["id"], "FROM_FAILURE") == "FAILURE"  # for it still is


def test_an_interrupted_run_is_cancelled_and_can_go_on(server: Server) -> None:
    known = {run["id"] for run in _runs(server)}
    path = server.home / "studies" / f"{STUDY}.yaml"
    before = path.read_text()
    path.write_text(before.replace("umap: {", "umap: {min_dist: 0.2, "))
    command = [sys.executable, "-m", "neumf_assets.cli", "run", "--study", STUDY]
    process = subprocess.Popen(command, env=environment(server.home), stdout=subprocess.DEVNULL)
    try:

        def begun() -> str | None:
            new = [
                run
                for run in _runs(server, statuses=["STARTED"])
                if run["id"] not in known and run["jobName"] == f"{STUDY}_integrate"
            ]
            return str(new[0]["id"]) if new else None

        run = wait_until(begun, "the run")
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    finally:
        process.kill()
        process.wait()
        path.write_text(before)
    [found] = _runs(server, runIds=[run])
    assert found["status"] == "CANCELED"
    assert _again(server, run, "FROM_FAILURE") == "SUCCESS"


_DRY_RUN = """mutation Tick($schedule: ScheduleSelector!, $at: Float!) {
                scheduleDryRun(selectorData: $schedule, timestamp: $at) { __typename
                  ... on DryRunInstigationTick { evaluationResult { skipReason error { message }
                    runRequests { runKey tags { key value } } } }
                  ... on PythonError { message } } }"""


def _refresh(server: Server) -> dict[str, str | None]:
    """What a tick of the refresh asks for, evaluated by the code server: run key by dataset."""
    answer = server.ask(
        _DRY_RUN,
        schedule={
            "repositoryName": "__repository__",
            "repositoryLocationName": LOCATION,
            "scheduleName": f"{STUDY}_refresh",
        },
        at=time.time(),
    )["scheduleDryRun"]
    assert answer["__typename"] == "DryRunInstigationTick", answer
    found = answer["evaluationResult"]
    assert found["error"] is None, found["error"]
    requests = found["runRequests"] or []
    assert requests or found["skipReason"] == "Everything is up to date."
    tags = [{tag["key"]: tag["value"] for tag in request["tags"]} for request in requests]
    return {tag["dagster/partition"]: request["runKey"] for tag, request in zip(tags, requests, strict=True)}


def test_the_servers_refresh_takes_none_one_and_three_stale_datasets(server: Server, tmp_path: Path) -> None:
    inbox, original = server.home.parent / "inbox", tmp_path / "original"
    write_study(original, seed=3)
    shutil.copytree(original, inbox, dirs_exist_ok=True)
    assert _refresh(server) == {}
    write_study(tmp_path / "changed", seed=11)
    shutil.copy(tmp_path / "changed" / "stim.csv.gz", inbox)
    assert _refresh(server) == {"stim": "stim"}
    shutil.copytree(tmp_path / "changed", inbox, dirs_exist_ok=True)
    assert _refresh(server) == {"ctrl": "ctrl", "late": "late", "stim": "stim"}

"""The live daemon on a real inbox: arrivals, a dataset that lands mid-rebuild, a bad file, a mixed backfill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from neumf_assets.home import Home
from neumf_assets_tests.e2e.servers import BIN, Server, wait_for
from neumf_assets_tests.live import BROKEN, counts_csv

ROOT = Path(__file__).resolve().parents[2]
STUDY = """\
name: pbmc
inbox: {inbox}
arms: [liger]
{more}
"""
QUICK = "arrival: {poll_seconds: 2, quiet_seconds: 3}"
EVERY_MINUTE = 'arrival: {poll_seconds: 86400}\nschedule: {cron: "* * * * *"}'
WORKSPACE = """\
load_from:
  - python_module:
      module_name: neumf_assets_tests.live_definitions
      location_name: neumf_assets
"""


class Daemon:
    """A running daemon with its code server, and what its instance says."""

    def __init__(self, inbox: Path, home: Home, instance: dg.DagsterInstance) -> None:
        self.inbox, self.home, self.instance = inbox, home, instance

    def put(self, **files: str) -> None:
        """Upload files as careful people do: under another name first."""
        for name, text in files.items():
            (self.inbox / f"{name}.csv.part").write_text(text)
            (self.inbox / f"{name}.csv.part").rename(self.inbox / f"{name}.csv")

    def runs(self, dataset: str | None) -> list[dg.DagsterRun]:
        """Runs of a dataset, or those of the study as a whole."""
        runs = self.instance.get_runs()
        return [run for run in runs if run.tags.get("dagster/partition") == dataset]

    def ended(self, dataset: str | None, number: int) -> bool:
        """Whether so many runs have ended."""
        return sum(run.is_finished for run in self.runs(dataset)) >= number

    def statuses(self, dataset: str | None) -> list[str]:
        return [run.status.value for run in self.runs(dataset)]

    def partitions(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions("pbmc_datasets"))

    def integrated(self) -> list[str]:
        return sorted(self.home.store().get(("pbmc", "report")).manifest.figures["made_of"]["counts"])


@pytest.fixture
def daemon(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Daemon]:
    folders = Home.from_environment()
    folders.prepare()
    inbox = tmp_path / "in"
    inbox.mkdir()
    (folders.studies / "pbmc.yaml").write_text(STUDY.format(inbox=inbox, more=request.param))
    folders.workspace.write_text(WORKSPACE)
    monkeypatch.setenv("DAGSTER_HOME", str(folders.dagster))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [str(BIN / "dagster-daemon"), "run", "-w", str(folders.workspace)]
    server = Server(command, tmp_path / "daemon.log", cwd=tmp_path, env=dict(os.environ))
    with dg.DagsterInstance.get() as instance:
        instance.get_runs_count()  # so that the databases are there: two processes cannot create them at once
        server.start()
        try:
            yield Daemon(inbox, folders, instance)
        finally:
            server.stop()


@pytest.mark.e2e
@pytest.mark.parametrize("daemon", [QUICK], indirect=True, ids=[""])
def test_datasets_arrive_under_a_live_daemon(daemon: Daemon) -> None:
    hold = daemon.home.root / "hold"
    hold.touch()
    daemon.put(a=counts_csv(1), b=counts_csv(2), bad=BROKEN)
    wait_for(lambda: daemon.statuses(None) == ["STARTED"], "the rebuild after the burst")
    assert [daemon.statuses(name) for name in ("a", "b", "bad")] == [["SUCCESS"], ["SUCCESS"], ["FAILURE"]]
    daemon.put(late=counts_csv(3))
    wait_for(lambda: daemon.ended("late", 1), "the dataset that lands meanwhile")
    assert daemon.statuses(None) == ["STARTED"]
    hold.unlink()
    wait_for(lambda: daemon.ended(None, 2), "the second rebuild")
    assert daemon.statuses(None) == ["SUCCESS", "SUCCESS"]
    assert daemon.integrated() == ["a", "b", "late"]
    assert daemon.partitions() == {"a", "b", "late"}
    assert "line 2" in (daemon.inbox / "bad.refused.txt").read_text()

    found = _backfill("a", "bad", "late")
    wait_for(lambda: _is_over(daemon, found), "the backfill")
    assert daemon.instance.get_backfill(found).status == BulkActionStatus.COMPLETED_FAILED
    assert daemon.statuses("a") == ["SUCCESS"] * 2
    assert daemon.statuses("late") == ["SUCCESS"] * 2
    assert daemon.statuses("bad") == ["FAILURE"] * 2
    wait_for(lambda: daemon.partitions() == {"a", "b", "late"}, "the bad dataset's removal")

    daemon.put(bad=counts_csv(4))
    wait_for(lambda: daemon.ended(None, 3), "the rebuild with the corrected file")
    assert daemon.statuses(None) == ["SUCCESS"] * 3  # none after the backfill: it changed nothing
    assert daemon.integrated() == ["a", "b", "bad", "late"]
    assert not (daemon.inbox / "bad.refused.txt").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("daemon", [EVERY_MINUTE], indirect=True, ids=[""])
def test_a_tick_of_the_refresh_starts_a_run_for_each_stale_dataset(daemon: Daemon) -> None:
    names = ["a", "b", "c"]
    daemon.put(**{name: counts_csv(number) for number, name in enumerate(names)})
    daemon.instance.add_dynamic_partitions("pbmc_datasets", names)

    def of_the_first_tick() -> list[dg.DagsterRun]:
        runs = [run for run in daemon.instance.get_runs() if "dagster/schedule_name" in run.tags]
        first = min((run.tags[".dagster/scheduled_execution_time"] for run in runs), default="")
        return [run for run in runs if run.tags[".dagster/scheduled_execution_time"] == first]

    wait_for(lambda: len(of_the_first_tick()) == 3, "three runs of one tick", 240)
    assert sorted(run.tags["dagster/partition"] for run in of_the_first_tick()) == names
    assert {run.tags["dagster/schedule_name"] for run in of_the_first_tick()} == {"pbmc_refresh"}
    for name in names:
        wait_for(lambda name=name: daemon.ended(name, 1), f"the run of {name}")
        assert "SUCCESS" in daemon.statuses(name)


def _backfill(*datasets: str) -> str:
    command = [sys.executable, "-m", "neumf_assets.cli", "backfill", "--study", "pbmc"]
    for name in datasets:
        command += ["--dataset", name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()[1].rstrip(":")


def _is_over(daemon: Daemon, backfill: str) -> bool:
    found = daemon.instance.get_backfill(backfill)
    return found is not None and found.status not in (BulkActionStatus.REQUESTED, BulkActionStatus.FAILING)

"""Kills, interrupts and a full disk: the last good version stays, a re-run completes, nothing is in progress."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.home import Home
from neumf_assets.running.orphans import IN_PROGRESS, fail_dead_runs
from neumf_assets_tests.conftest import need, use_home

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name: tiny
inbox: {inbox}
label_column: cell_type
arms: [liger]
model: {{kind: gmf, gmf_size: 4, epochs: {epochs}, threads: 1, checkpoint_seconds: 0}}
evaluation: {{baselines: [gene_mean]}}
liger: {{k: 5, iterations: 5, trial_iterations: 1}}
clusters: {{resolutions: [0.4], default_resolution: 0.4, seeds: [0], hdbscan_min_size: 10}}
umap: {{n_epochs: 10}}
"""
QUICK, ENDLESS = 2, 10_000


def _write_study(home: Path, inbox: Path, epochs: int) -> None:
    (home / "studies").mkdir(parents=True, exist_ok=True)
    (home / "studies" / "tiny.yaml").write_text(STUDY.format(inbox=inbox, epochs=epochs))


def _environment(home: Path) -> dict[str, str]:
    others = {k: v for k, v in os.environ.items() if not k.startswith(("NEUMF_", "DAGSTER_"))}
    return {**others, "NEUMF_HOME": str(home), "OMP_NUM_THREADS": "1"}


def _command(home: Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "neumf_assets.cli", "run", "--study", "tiny"],
        env=_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inbox and the home of a study that is up to date."""
    root = tmp_path_factory.mktemp("faults")
    datasets = [["ctrl", 110, "control"], ["stim", 90, "stimulated"]]
    write_inbox(
        SimulatorSettings.model_validate({"datasets": datasets, "genes": 400, "seed": 3}), root / "inbox"
    )
    _write_study(root / "home", root / "inbox", QUICK)
    process = _command(root / "home")
    shown, _ = process.communicate(timeout=600)
    assert process.returncode == 0, shown
    return root


@pytest.fixture
def study(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that home, with a model that trains for long when it is next brought up to date."""
    home = use_home(monkeypatch, tmp_path / "home")
    shutil.copytree(built / "home", home)
    _write_study(home, built / "inbox", ENDLESS)
    return home


@contextlib.contextmanager
def _training(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that is in the middle of training: it has written a checkpoint."""
    process = _command(home)
    try:
        end = time.monotonic() + 240
        while not list((home / "scratch").rglob("*.safetensors")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "training did not begin"
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def _in_progress(home: Path) -> list[str]:
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        return [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=list(IN_PROGRESS)))]


def _last_status(home: Path) -> dg.DagsterRunStatus:
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        return instance.get_runs(limit=1)[0].status


def _versions(home: Path) -> dict[str, str]:
    """The current version of every artifact; every file of it is there, whole."""
    found = {}
    for path in sorted((home / "storage").rglob("manifest.json")):
        content = json.loads(path.read_text())
        for name, size in content["files"].items():
            assert (path.parent / content["version"] / name).stat().st_size == size
        found[str(path.parent.relative_to(home / "storage"))] = content["version"]
    return found


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_that_is_ended_by_a_signal(built: Path, study: Path, sent: signal.Signals, status: int) -> None:
    before = _versions(study)
    with _training(study) as process:
        process.send_signal(sent)
        shown, _ = process.communicate(timeout=120)
    assert process.returncode == status, shown
    assert "Traceback" not in shown
    assert _versions(study) == before
    if sent != signal.SIGKILL:
        assert _in_progress(study) == []
        assert _last_status(study) == dg.DagsterRunStatus.CANCELED
        assert list((study / "locks" / "runs").iterdir()) == []
        assert not list((study / "storage").rglob(".tmp-*"))
    _write_study(study, built / "inbox", QUICK + 1)
    again = _command(study)
    shown, _ = again.communicate(timeout=600)
    assert again.returncode == 0, shown
    assert ("was cut off" in shown) == (sent == signal.SIGKILL)
    assert _in_progress(study) == []
    assert _versions(study)["tiny/neumf_model/ctrl"] != before["tiny/neumf_model/ctrl"]


def test_a_second_command_leaves_the_first_ones_run_alone(built: Path, study: Path) -> None:
    with _training(study):
        running = _in_progress(study)
        assert len(running) == 1
        with dg.DagsterInstance.from_config(str(study / "dagster")) as instance:
            assert fail_dead_runs(instance, Home.from_environment()) == []
        assert _in_progress(study) == running


def test_a_full_disk_leaves_the_last_version_and_says_so(built: Path, study: Path, tmp_path: Path) -> None:
    need(os.getuid() == 0 and shutil.which("mount"), "the right to mount a small disk")
    disk, old = tmp_path / "disk", study / "storage"
    disk.mkdir()
    size = sum(path.stat().st_size for path in old.rglob("*") if path.is_file()) + 2**26  # filled up below
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    need(mounted.returncode == 0, "the right to mount a small disk")
    try:
        shutil.copytree(old, disk / "storage")
        shutil.rmtree(old)
        old.symlink_to(disk / "storage")
        before = _versions(disk)
        filler = shutil.disk_usage(disk).free - 8192
        (disk / "filler").write_bytes(b"\0" * filler)
        _write_study(study, built / "inbox", QUICK + 1)
        process = _command(study)
        shown, _ = process.communicate(timeout=600)
        assert process.returncode == 1, shown
        assert "No space left on device" in shown
        assert "Traceback" not in shown
        assert _versions(disk) == before
        assert not list(disk.rglob(".tmp-*"))
        (disk / "filler").unlink()
        process = _command(study)
        shown, _ = process.communicate(timeout=600)
        assert process.returncode == 0, shown
        assert _versions(disk)["tiny/neumf_model/ctrl"] != before["tiny/neumf_model/ctrl"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _campaign(**settings: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_points", "--quick"],
        cwd=ROOT,
        env={**_environment(Path("unused")), **settings},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.splitlines()[-1])["rows"][-1]
    assert row.pop("asset") == "all"
    return {key: int(value) for key, value in row.items()}


def _harmless(found: dict[str, int]) -> bool:
    wrong = ("data_lost", "half_written_visible", "runs_in_progress", "reruns_failed")
    return not any(found[key] for key in wrong)


@pytest.mark.slow
def test_kills_of_every_kind_of_asset_by_every_signal_do_no_harm() -> None:
    found = _campaign(NEUMF_KILL_POINTS="2")
    assert found["kills"] >= 2 * 19
    assert min(found["by_sigterm"], found["by_sigint"]) >= 6
    assert (
        found["too_late"] <= found["kills"] / 2
    )  # operations are never missed, moments may be on a busy machine
    assert _harmless(found), found

"""Kills the computation of every kind of asset at many points, and looks for damage.

A process that materialises one asset, whose previous version is in place, is killed (SIGKILL): at file
operations inside the store and the results folder, spread from the first to the last, and at moments spread
over its whole time. At two of three of these moments it is asked to end instead: by SIGTERM, which is what a
service's stop sends, or by SIGINT, which is what cancelling a run comes to. After each kill: is the last good
version readable, bit for bit, and that of every other asset? Is anything half-written visible? Does a re-run
complete, with no run left in progress?
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness

POINTS, QUICK_POINTS = 20, 2
_RERUN_EVERY = 5
# at moments, in turn, for each kind from another one on
_SENT = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
STUDY = """
name: tiny
label_column: cell_type
model: {epochs: 3, pretrain_epochs: 1, fusion_epochs: 1, tower: [8], gmf_size: 4, mlp_size: 4, threads: 1,
        checkpoint_seconds: 0}
ineumf: {kind: gmf, gmf_size: 4, epochs: 3, threads: 1, checkpoint_seconds: 0}
evaluation: {baselines: [gene_mean]}
liger: {k: 5, iterations: 5, trial_iterations: 1}
clusters: {resolutions: [0.4], default_resolution: 0.4, seeds: [0], hdbscan_min_size: 10}
umap: {n_epochs: 10}
"""
_OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
_PRELOADED = (
    "anndata",
    "dagster._core.storage.sqlite_storage",
    "matplotlib.backends.backend_agg",
    "pyarrow.parquet",
    "scipy.sparse",
    "sklearn.neighbors",
    "torch",
    "umap",
    "zarr",
    "neumf_assets.core.neumf.training.fit",
    "neumf_assets.definitions",
)


@dataclass(frozen=True)
class Kind:
    """A kind of asset: the first stage of the study that computes it."""

    stage: str
    dataset: str | None


@dataclass
class Tally:
    """What was found at the kill-points of one kind of asset."""

    kills: int = 0
    by_sigterm: int = 0
    by_sigint: int = 0
    too_late: int = 0
    reruns: int = 0
    data_lost: int = 0
    half_written_visible: int = 0
    runs_in_progress: int = 0
    reruns_failed: int = 0


class Campaign:
    """One study that is complete, and processes that are killed while they compute it anew."""

    def __init__(self, root: Path) -> None:
        from neumf_assets.home import Home

        os.environ |= {"NEUMF_HOME": str(root), "DAGSTER_HOME": str(root / "dagster"), "NEUMF_DEVICE": "cpu"}
        os.environ.pop("NEUMF_STORAGE", None)
        self.home = Home.from_environment()
        self.home.prepare()
        (self.home.studies / "tiny.yaml").write_text(STUDY)
        self._preload()

    def build(self) -> None:
        """Bring the study up to date once."""
        if _in_child(self._build).wait() != 0:
            raise RuntimeError("the study could not be built")

    def kinds(self) -> list[Kind]:
        """Every kind of asset: stages that differ only in their arm count once."""
        from neumf_assets.assets.catalogue import stages

        found: dict[tuple[str, str], Kind] = {}
        for item in stages(self._study()):
            computed_by = (item.compute.__module__, item.compute.__qualname__)
            found.setdefault(computed_by, Kind(item.path, "ctrl" if item.per_dataset else None))
        return list(found.values())

    def examine(self, kind: Kind, points: int, first_signal: int) -> Tally:
        """Kill the computation of one asset at so many points."""
        tally = Tally()
        whole = _in_child(lambda report: self._materialise(kind, report, None))
        begun = time.perf_counter()
        if whole.wait() != 0:
            raise RuntimeError(f"{kind.stage} could not be computed even without a kill")
        seconds, operations = time.perf_counter() - begun, int(whole.said[-1]["operations"])
        for number in range(points):
            share = (number // 2 + 0.5) / ((points + 1) // 2)
            before = self.snapshot()
            if number % 2:
                sent = _SENT[(first_signal + number // 2) % len(_SENT)]
                status = self._kill_at_time(kind, share * seconds, sent)
                tally.by_sigterm += sent == signal.SIGTERM
                tally.by_sigint += sent == signal.SIGINT
            else:
                status = self._kill_at_operation(kind, 1 + round(share * (operations - 1)))
            tally.kills += 1
            tally.too_late += status == 0
            lost, half = self.damage(before, kind)
            tally.data_lost += lost
            tally.half_written_visible += half
            if (number + 1) % _RERUN_EVERY == 0 or number + 1 == points:
                again = _in_child(lambda report: self._materialise(kind, report, None))
                tally.reruns += 1
                tally.reruns_failed += again.wait() != 0
                tally.runs_in_progress += int(again.said[0]["in_progress"]) if again.said else 1
        return tally

    def snapshot(self) -> dict[str, Any]:
        """The current version of every artifact, with the hashes of its files; and the results."""
        artifacts = {str(key): _described(key) for key in _manifests(Path(self.home.storage))}
        results = {str(path): _hash(path) for path in self._results()}
        return {"artifacts": artifacts, "results": results}

    def damage(self, before: dict[str, Any], kind: Kind) -> tuple[int, int]:
        """How many artifacts are lost, and how many half-written files are visible, against a snapshot."""
        from neumf_assets.core.store import Store

        target = "/".join(["tiny", kind.stage, *([kind.dataset] if kind.dataset else [])])
        lost = half = 0
        for key, (version, files) in before["artifacts"].items():
            found = Store(self.home.storage).find(Path(key).relative_to(self.home.storage).parts)
            own = Path(key) == Path(self.home.storage) / target
            if found is None:
                lost += 1
            elif found.manifest.version == version:
                lost += _described(Path(key))[1] != files
            elif not own:
                lost += 1
            sizes = {} if found is None else found.manifest.files
            half += any(_size(found.path / name) != size for name, size in sizes.items()) if found else 0
        known = {digest for _, files in self.snapshot()["artifacts"].values() for digest in files.values()}
        known |= set(before["results"].values())
        half += sum(_hash(path) not in known for path in self._results())
        return lost, half

    def _results(self) -> list[Path]:
        folder = self.home.results("tiny")
        return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]

    def _kill_at_operation(self, kind: Kind, operation: int) -> int:
        return _in_child(lambda report: self._materialise(kind, report, operation)).wait()

    def _kill_at_time(self, kind: Kind, seconds: float, sent: signal.Signals) -> int:
        child = _in_child(lambda report: self._materialise(kind, report, None))
        time.sleep(seconds)
        os.kill(child.pid, sent)
        return child.wait()

    def _materialise(self, kind: Kind, report: Any, die_at: int | None) -> int:
        """In the child: clean up after the dead, then compute one asset as ``neumf-assets run`` does."""
        import dagster as dg

        from neumf_assets.definitions.study import study_definitions
        from neumf_assets.running.orphans import IN_PROGRESS, alive, fail_dead_runs
        from neumf_assets.study.names import job_name

        job = "train" if kind.dataset else "integrate"
        with dg.DagsterInstance.get() as instance:
            fail_dead_runs(instance, self.home)
            left = instance.get_runs(dg.RunsFilter(statuses=list(IN_PROGRESS)))
            report({"in_progress": len(left)})
            run_id = dg._core.utils.make_new_run_id()  # type: ignore[attr-defined]
            count = _count_operations([Path(self.home.storage), self.home.root / "results"], die_at)
            with alive(self.home, run_id):
                result = (
                    study_definitions(self._study())
                    .resolve_job_def(job_name("tiny", job))
                    .execute_in_process(
                        instance=instance,
                        partition_key=kind.dataset,
                        asset_selection=[dg.AssetKey(["tiny", *kind.stage.split("/")])],
                        raise_on_error=False,
                        run_id=run_id,
                    )
                )
            report({"operations": count()})
            return 0 if result.success else 1

    def _build(self, report: Any) -> int:
        from neumf_assets.commands.run import run_study

        self._write_inbox()
        return run_study("tiny", None)

    def _study(self) -> Any:
        from neumf_assets.definitions.studies import all_studies

        return all_studies(self.home).named("tiny")

    def _write_inbox(self) -> None:
        from neumf_assets.core.counts.simulate.inbox import write_inbox
        from neumf_assets.core.counts.simulate.settings import SimulatorSettings

        datasets = [["ctrl", 110, "control"], ["stim", 90, "stimulated"]]
        settings = SimulatorSettings.model_validate({"datasets": datasets, "genes": 400, "seed": 3})
        write_inbox(settings, Path(self.home.inbox("tiny")))

    def _preload(self) -> None:
        """Import what children need, once; this process must not compute with it, or forks would hang.

        Polars is not among it: its threads do not survive a fork.
        """
        for name in _PRELOADED:
            __import__(name)


class Child:
    """A forked process that can say things."""

    def __init__(self, pid: int, reader: int) -> None:
        self.pid, self._reader = pid, reader
        self.said: list[dict[str, Any]] = []

    def wait(self) -> int:
        """Wait for its end; its exit status, negative for a signal."""
        with os.fdopen(self._reader) as stream:
            self.said = [json.loads(line) for line in stream]
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _in_child(work: Any) -> Child:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Child(pid, reader)
    status = 70
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0,) if os.environ.get("NEUMF_KILL_POINTS_SHOW") else (0, 1, 2):
            os.dup2(nowhere, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        status = work(lambda told: os.write(writer, (json.dumps(told) + "\n").encode()))
    finally:
        os._exit(status)


def _count_operations(folders: list[Path], die_at: int | None) -> Any:
    """Count this process's file operations below some folders; kill it at one of them."""
    places, seen = tuple(str(folder) for folder in folders), [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS or not arguments or not isinstance(arguments[0], (str, os.PathLike)):
            return
        seen[0] += str(arguments[0]).startswith(places)
        if seen[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen[0]


def _manifests(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("manifest.json")):
        yield path.parent


def _described(folder: Path) -> tuple[str, dict[str, str]]:
    content = json.loads((folder / "manifest.json").read_text())
    files = {name: _hash(folder / content["version"] / name) for name in content["files"]}
    return content["version"], files


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def main(quick: bool = False) -> dict[str, Any]:
    """Kill every kind of asset at ``POINTS`` points.

    ``NEUMF_KILL_POINTS`` sets another number, ``NEUMF_KILL_ASSETS`` names some assets only.
    """
    points = int(os.environ.get("NEUMF_KILL_POINTS") or (QUICK_POINTS if quick else POINTS))
    rows = []
    with tempfile.TemporaryDirectory(prefix="neumf-kill-points-") as name:
        campaign = Campaign(Path(name) / "home")
        campaign.build()
        chosen = os.environ.get("NEUMF_KILL_ASSETS", "").split()
        for number, kind in enumerate(campaign.kinds()):
            if chosen and kind.stage not in chosen:
                continue
            tally = campaign.examine(kind, points, number)
            rows.append({"asset": kind.stage, **vars(tally)})
            harness.say(f"{kind.stage}: {vars(tally)}")
    total = {key: sum(int(row[key]) for row in rows) for key in vars(Tally())}
    return {
        "title": f"{points} kill-points for each of {len(rows)} kinds of assets",
        "rows": [*rows, {"asset": "all", **total}],
        "notes": ["Expected: nothing lost, half-written, in progress or failed."],
    }


if __name__ == "__main__":
    harness.script(main)

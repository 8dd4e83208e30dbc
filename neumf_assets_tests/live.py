"""A study under a real Dagster instance, with sensor and automation ticked by hand and runs executed here.

Only the science is replaced: every stage after reading writes a line instead of computing. What is counted
(ticks, run requests, partitions, materialisations, conditions) is Dagster's own.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import neumf_assets.definitions.study as study_definitions
from neumf_assets.assets.stage import CheckOutcome, Product, Stage, Step
from neumf_assets.freshness.reuse import REUSE_TAG
from neumf_assets.intake.arrival import Look, look
from neumf_assets.study.names import job_name, partitions_name
from neumf_assets.study.settings import StudySettings

CELLS = 24


def counts_csv(seed: int = 0) -> str:
    """A small count table, cells × genes, that differs by seed."""
    genes = [f"G{number}" for number in range(8)]
    rows = [
        f"c{cell}," + ",".join(str((cell * 7 + gene * 3 + seed) % 4) for gene in range(len(genes)))
        for cell in range(CELLS)
    ]
    return "\n".join([",".join(["", *genes]), *rows]) + "\n"


BROKEN = ",G0,G1\nc0,1,x\nc1,0,3\n"


def stubbed(
    monkeypatch: pytest.MonkeyPatch,
    during: Callable[[Stage, Step], None] | None = None,
    real: frozenset[str] = frozenset({"raw_counts"}),
) -> None:
    """Replace what the stages compute but the ``real`` ones; ``during`` is called from within all of them."""
    original = study_definitions.asset_of

    def asset_of(study: StudySettings, declared: Stage, *others: Any) -> dg.AssetsDefinition:
        compute = declared.compute if declared.path in real else _writes_a_line(declared)
        if during is not None:
            compute = _after(during, declared, compute)
        declared = dataclasses.replace(declared, compute=compute)
        return original(study, declared, *others)

    monkeypatch.setattr(study_definitions, "asset_of", asset_of)
    monkeypatch.setenv("NEUMF_DEVICE", "cpu")


def hold(declared: Stage, step: Step) -> None:
    """Wait in the asset that a file called ``hold`` in NEUMF_HOME names, for as long as the file is there.

    Another file, ``held``, says that it waits. An empty one stands for ``liger/cell_embedding``, which holds no
    device that a dataset would have to wait for.
    """
    asked = Path(os.environ["NEUMF_HOME"]) / "hold"
    while declared.path == _waiting(asked):
        asked.with_name("held").touch()
        time.sleep(0.2)


def _waiting(asked: Path) -> str | None:
    try:
        return asked.read_text() or "liger/cell_embedding"
    except FileNotFoundError:
        return None


def _after(
    during: Callable[[Stage, Step], None], declared: Stage, then: Callable[[Step], Product]
) -> Callable[[Step], Product]:
    def compute(step: Step) -> Product:
        during(declared, step)
        return then(step)

    return compute


def _writes_a_line(declared: Stage) -> Callable[[Step], Product]:
    def compute(step: Step) -> Product:
        made_of = {
            name: sorted(step.inputs[name]) for name in step.inputs if isinstance(step.inputs[name], dict)
        }
        return Product(
            lambda folder: (folder / "line.txt").write_text(declared.path),
            {"datasets": made_of},
            checks=[CheckOutcome(name, True, "") for name, _ in declared.checks],
        )

    return compute


class Live:
    """A study whose daemons are this object's methods.

    Attributes
    ----------
    dataset_runs, study_runs
        What was run: dataset by run, and the number of the study's assets by run.
    """

    def __init__(self, study: StudySettings, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.use(study)
        self.now = time.time()
        self.cursor: str | None = None
        self.automation: Any = None
        self.last = Look()
        self.dataset_runs: list[str] = []
        self.study_runs: list[set[str]] = []
        self.results: list[dg.ExecuteInProcessResult] = []

    def use(self, study: StudySettings) -> None:
        """Load the study's definitions, as a code location does after a change of settings."""
        self.study, self.definitions = study, study_definitions.study_definitions(study)

    @property
    def inbox(self) -> Path:
        assert self.study.inbox is not None
        return Path(self.study.inbox)

    def put(self, name: str, text: str) -> None:
        """Upload a file."""
        path = self.inbox / name
        path.write_text(text)
        os.utime(path, ns=(time.time_ns(), time.time_ns()))

    def partitions(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions(partitions_name(self.study.name)))

    def arrivals(self) -> list[str]:
        """A tick of the arrival sensor; the datasets that runs were asked for."""
        self.now += self.study.arrival.poll_seconds
        self.last = look(self.study, self.instance, self.cursor, self.now)
        self.cursor = self.last.cursor
        self.instance.add_dynamic_partitions(partitions_name(self.study.name), self.last.names)
        for name in set(self.last.drops) - set(self.last.names):
            self.instance.delete_dynamic_partition(partitions_name(self.study.name), name)
        for event in self.last.events:
            self.instance.report_runless_asset_event(event)
        return [item.name for item, _ in self.last.requests]

    def conditions(self) -> set[str]:
        """A tick of the automation sensor; the assets that it asks for."""
        there = self.instance.get_dynamic_partitions(partitions_name(self.study.name))
        with pytest.MonkeyPatch.context() as patch:  # asked hundreds of times, and the same throughout a tick
            patch.setattr(self.instance, "get_dynamic_partitions", lambda *_, **__: there)
            result = dg.evaluate_automation_conditions(
                self.definitions, self.instance, cursor=self.automation
            )
        self.automation = result.cursor
        return {"/".join(one.key.path[1:]) for one in result.results if one.true_subset.size}

    def run_dataset(self, name: str) -> bool:
        """The run that the arrival sensor asked for."""
        self.dataset_runs.append(name)
        return self._execute("train", None, name)

    def run_study(self, assets: set[str]) -> bool:
        """The run that the automation sensor asked for."""
        self.study_runs.append(assets)
        return self._execute(
            "integrate", [dg.AssetKey([self.study.name, *a.split("/")]) for a in assets], None
        )

    def settle(self, rounds: int = 20) -> None:
        """Tick both sensors and run all that they ask for, until twice in a row they ask for nothing."""
        idle = 0
        for _ in range(rounds):
            asked = self.arrivals()
            for name in asked:
                self.run_dataset(name)
            if assets := self.conditions():
                self.run_study(assets)
            idle = 0 if asked or assets else idle + 1
            if idle == 2:
                return
        raise AssertionError(f"still at work after {rounds} rounds: {self.dataset_runs}, {self.study_runs}")

    def materialisations(self, asset: str, partition: str | None = None) -> int:
        """How often an asset was computed anew."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=dg.AssetKey([self.study.name, *asset.split("/")]),
                asset_partitions=[partition] if partition else None,
            ),
            limit=1000,
        ).records
        events = [record.asset_materialization for record in records]
        return sum(event is not None and "unchanged" not in event.metadata for event in events)

    def integrated(self) -> list[str]:
        """The datasets that the study's last result is made of."""
        from neumf_assets.home import Home

        artifact = Home.from_environment().store().get((self.study.name, "report"))
        return sorted(artifact.manifest.figures["made_of"]["counts"])

    def _execute(self, job: str, selection: list[dg.AssetKey] | None, partition: str | None) -> bool:
        keys = selection or [
            dg.AssetKey([self.study.name, *item.name])
            for item in study_definitions.stages(self.study)
            if item.per_dataset
        ]
        result = self.definitions.resolve_job_def(job_name(self.study.name, job)).execute_in_process(
            instance=self.instance,
            partition_key=partition,
            asset_selection=keys,
            raise_on_error=False,
            tags={REUSE_TAG: "true"},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        self.results.append(result)
        return bool(result.success)


class Snapshot:
    """A study in memory as it is now, with its files below ``root``, to go back to as often as wanted.

    Making it anew takes more than a second of runs.
    """

    def __init__(self, live: Live, root: Path, kept: Path) -> None:
        self.live, self.root, self.kept = live, root, kept
        shutil.copytree(root, kept)
        self.state = self._changing(vars(live))
        self.databases = []
        for database in self._in_use():
            self.databases.append(sqlite3.connect(":memory:", check_same_thread=False))
            database.backup(self.databases[-1])

    def restore(self) -> None:
        """Go back."""
        shutil.rmtree(self.root)
        shutil.copytree(self.kept, self.root)
        vars(self.live).update(self._changing(self.state))
        for database, kept in zip(self._in_use(), self.databases, strict=True):
            kept.backup(database)

    @staticmethod
    def _changing(state: dict[str, Any]) -> dict[str, Any]:
        """What runs and ticks change, with lists of its own."""
        fixed = ("study", "definitions", "instance")
        return {name: copy.copy(value) for name, value in state.items() if name not in fixed}

    def _in_use(self) -> list[sqlite3.Connection]:
        stores: list[Any] = [self.live.instance.run_storage, self.live.instance.event_log_storage]
        return [store._held_conn.connection.driver_connection for store in stores]


@contextmanager
def live_study(folder: Path, on_disk: bool = False, **settings: Any) -> Iterator[Live]:
    """A study with an empty inbox, whose automation has been evaluated once as a daemon would at its start.

    Schedules open the instance by reference, which only one ``on_disk`` has; in memory is faster.
    """
    inbox = folder / "in"
    inbox.mkdir()
    settings = {"arrival": {"quiet_seconds": 0}, "arms": ["liger"], **settings}
    study = StudySettings.model_validate({"name": "pbmc", "inbox": str(inbox), **settings})
    made = dg.DagsterInstance.local_temp(str(folder)) if on_disk else dg.DagsterInstance.ephemeral()
    with made as instance:
        live = Live(study, instance)
        live.arrivals()
        live.conditions()
        yield live

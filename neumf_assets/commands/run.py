"""``neumf-assets run``: a study once, in one process, into the Dagster instance that the UI opens."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
from rich.console import Console

from neumf_assets.assets.catalogue import stages
from neumf_assets.assets.gene_space import LEFT_OUT, gene_space
from neumf_assets.assets.stage import Stage
from neumf_assets.commands.terminal import LiveProgress, make_console, show_results, shown
from neumf_assets.core.counts.discover import Inbox, list_datasets
from neumf_assets.core.counts.sheet import find_sheet
from neumf_assets.core.errors import BadSettings
from neumf_assets.core.store import Store
from neumf_assets.dagster_internals import RunFailureReason, runs_of_the_code_location
from neumf_assets.definitions.studies import find_or_register
from neumf_assets.definitions.study import study_definitions
from neumf_assets.freshness.plan import plan
from neumf_assets.home import Home
from neumf_assets.intake.in_use import digests_in_use, missing
from neumf_assets.intake.left_out import left_out
from neumf_assets.intake.quarantine import Quarantine, listed_refusals
from neumf_assets.running.file_lock import FileLock
from neumf_assets.running.orphans import alive, fail_dead_runs
from neumf_assets.running.pools import said_while_waiting
from neumf_assets.running.progress_log import heard, watched_by
from neumf_assets.study.names import job_name, partitions_name
from neumf_assets.study.settings import StudySettings
from neumf_assets.study.sources import find_sources, inbox_of, readable_digests

MAX_RETRIES_TAG = "dagster/max_retries"  # documented with run retries
_QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Outcome:
    """What a run did: assets materialised, what failed and which datasets do not fit to the others, with reasons."""

    materialised: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def run_study(name: str | None, inbox: str | None, console: Console | None = None) -> int:
    """Bring a study up to date; returns the exit status: 0, or 1 if something failed or was left out."""
    console = console or make_console()
    home = Home.from_environment()
    home.prepare()
    home.announce()
    if inbox is not None and Path(inbox).is_dir() and find_sheet(inbox, None) is None:
        _check_not_empty(list_datasets(inbox), inbox)  # before there is a study of it
    study = find_or_register(home, name, inbox)
    lock = FileLock(home.locks / f"run-{study.name}.lock")
    if not lock.acquire(study=study.name):
        console.print(shown(_under_way(study, lock)), highlight=False)
        return 1
    try:
        return _bring_up_to_date(study, home, console)
    finally:
        lock.release()


def _under_way(study: StudySettings, lock: FileLock) -> str:
    """That another command works on the study, and since when."""
    holder = lock.holder()
    since = datetime.fromtimestamp(float(holder.get("since", time.time())))
    return (
        f"Study {study.name} is being brought up to date already, by process {holder.get('pid', '?')} on "
        f"{holder.get('host', '?')} since {since:%Y-%m-%d %H:%M}. Nothing was started; run it again after that."
    )


def _bring_up_to_date(study: StudySettings, home: Home, console: Console) -> int:
    start = time.perf_counter()
    console.print(f"Study [bold]{study.name}[/bold], inbox {shown(inbox_of(study))}", highlight=False)
    with (
        dg.DagsterInstance.get() as instance,
        LiveProgress(console) as progress,
        watched_by(progress),
        heard(progress.say),
    ):
        for run_id in fail_dead_runs(instance, home):
            console.print(f"Run {run_id} was cut off and is marked as failed.", highlight=False)
        outcome = _StudyRun(study, home, instance, progress).run()
    if outcome.materialised == 0 and not outcome.failures:
        console.print("Nothing to do: everything is up to date.")
    show_results(console, study, home, outcome.failures, outcome.left_out, time.perf_counter() - start)
    return 1 if outcome.failures or outcome.left_out else 0


def _check_not_empty(found: Inbox, inbox: str) -> None:
    """Refuse an inbox in which nothing lies that could be a dataset.

    Raises
    ------
    BadSettings
        Saying what was looked for.
    """
    if not (found.datasets or found.refused):
        raise BadSettings(
            f"There is no dataset in {inbox}: it is empty, or holds nothing but notes and hidden files. Looked for "
            "tables (.csv, .tsv, .txt), Matrix Market folders, .h5, .h5ad, .loom and Zarr stores; see docs/reading.md."
        )


class _StudyRun:
    def __init__(
        self, study: StudySettings, home: Home, instance: dg.DagsterInstance, progress: LiveProgress
    ) -> None:
        self.study, self.home, self.instance, self.progress = study, home, instance, progress
        self.store: Store = home.store()
        self.stages = stages(study)
        self.definitions = study_definitions(study)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Datasets first, each on its own; then what needs all that are healthy."""
        sources = find_sources(self.study)
        _check_not_empty(sources, inbox_of(self.study))
        for refused in sources.refused:
            self.outcome.failures[str(refused.file)] = str(refused)
        quarantine = Quarantine(self.study)
        changed = quarantine.forget_gone({item.name for item in sources.datasets})
        if quarantine.take_listing(listed_refusals(sources)) is not None or changed:
            self.instance.report_runless_asset_event(quarantine.evaluation())
        digests, unreadable = readable_digests(self.study, self.store, sources.datasets)
        for refused in unreadable:
            self.outcome.failures[str(refused.file)] = str(refused)
        names = partitions_name(self.study.name)
        for dataset in missing(self.study, self.instance.get_dynamic_partitions(names), sources):
            self.instance.delete_dynamic_partition(names, dataset)
            self.progress.say(
                logging.WARNING,
                f"{dataset}: its file is gone from the inbox, so it leaves the study. To keep it, put the file back or "
                "name it under `keep` in the study's settings.",
            )
        self.instance.add_dynamic_partitions(names, sorted(digests))
        for dataset, stale in plan(self.study, self.stages, digests, self.store).datasets.items():
            if stale and not self._execute("train", stale, dataset):
                self._forget_unusable(dataset)
        healthy = self.instance.get_dynamic_partitions(names)
        digests = digests_in_use(self.study, self.store, healthy, sources.datasets)
        apart = left_out(self.study, self.store, healthy)
        stale_study = plan(self.study, self.stages, digests, self.store, apart).study
        if stale_study and set(digests) - set(apart):
            self._execute("integrate", stale_study, None)
        self.outcome.left_out = self._strangers(digests)
        return self.outcome

    def _strangers(self, digests: Mapping[str, str]) -> dict[str, str]:
        """Datasets that could be read, and do not fit to the others."""
        space = self.store.find((self.study.name, gene_space.path))
        found = {} if space is None else space.manifest.figures.get(LEFT_OUT, {})
        return {name: reason for name, reason in found.items() if name in digests}

    def _execute(self, job: str, stale: Sequence[Stage], dataset: str | None) -> bool:
        self.progress.begin(dataset or self.study.name, len(stale))
        name = job_name(self.study.name, job)
        definition = self.definitions.resolve_job_def(name)
        run_id = str(uuid4())
        with (
            alive(self.home, run_id),
            runs_of_the_code_location(self.instance, name),
            said_while_waiting(self.instance, run_id, partial(self.progress.say, logging.INFO)),
        ):
            result = definition.execute_in_process(
                instance=self.instance,
                partition_key=dataset,
                asset_selection=[dg.AssetKey([self.study.name, *item.name]) for item in stale],
                raise_on_error=False,
                run_config=_QUIET,
                run_id=run_id,
                tags={MAX_RETRIES_TAG: "0"},  # started here by hand: the daemon leaves it alone
            )
        if _interrupted(result.all_events):
            self.instance.report_run_canceled(result.dagster_run, "Interrupted in the terminal.")
            raise KeyboardInterrupt
        self.outcome.materialised += len(result.get_asset_materialization_events())
        for step, reason in _failures(result.all_events):
            self.outcome.failures[f"{dataset or self.study.name}: {step}"] = reason
        return bool(result.success)

    def _forget_unusable(self, dataset: str) -> None:
        """A dataset without a usable file is no partition, or it would hold up everything that needs all."""
        if self.store.find((self.study.name, "raw_counts", dataset)) is None:
            self.instance.delete_dynamic_partition(partitions_name(self.study.name), dataset)


def _interrupted(events: Iterable[dg.DagsterEvent]) -> bool:
    """Whether a signal ended the run: Dagster then fails the run and returns as if nothing were the matter."""
    failures = [event.job_failure_data for event in events if event.event_type_value == "PIPELINE_FAILURE"]
    return any(data.failure_reason == RunFailureReason.UNEXPECTED_TERMINATION for data in failures)


def _failures(events: Iterable[dg.DagsterEvent]) -> Iterable[tuple[str, str]]:
    for event in events:
        if event.event_type_value == "STEP_FAILURE":
            data = event.step_failure_data
            described = data.user_failure_data.description if data.user_failure_data else None
            error = data.error.cause or data.error if data.error else None
            yield (
                (event.step_key or "").split("__", 1)[-1],
                described or (str(error.message).strip() if error else "unknown error"),
            )

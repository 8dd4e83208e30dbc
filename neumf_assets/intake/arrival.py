"""One look at a study's inbox: what came, changed, went or is refused, and which runs that calls for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import dagster as dg

from neumf_assets.assets.catalogue import stages
from neumf_assets.core.counts.discover import DatasetFile, Inbox
from neumf_assets.freshness.plan import plan
from neumf_assets.home import Home
from neumf_assets.intake.in_use import missing
from neumf_assets.intake.quarantine import Quarantine, give_up, gone, left_behind, listed_refusals
from neumf_assets.study.names import partitions_name
from neumf_assets.study.settings import StudySettings
from neumf_assets.study.sources import find_sources

REQUESTS_AT_ONCE = 100
"""Runs asked for by one look, at most: the daemon creates them one after the other."""

LOOK_SECONDS = 10.0
"""Datasets are compared with the storage for so long in one look: Dagster breaks a tick off after a minute."""

_LONGEST_WAIT = 10  # times quiet_seconds
_SHOWN = 12  # characters of an identity that are kept: enough to tell one from another
_PARTITION = "dagster/partition"
_WILL_RETRY = "dagster/will_retry"
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass
class Watch:
    """What is remembered from one look to the next, by dataset (or file, where it is refused)."""

    seen: dict[str, str] = field(default_factory=dict)  # identity at the last look
    due: dict[str, str] = field(default_factory=dict)  # identity that a run is to be asked for
    requested: dict[str, str] = field(default_factory=dict)  # identity that a run was asked for
    times: dict[str, int] = field(default_factory=dict)  # how many runs were asked for
    failures: dict[str, int] = field(default_factory=dict)  # how many of them failed, for the same file
    refused: dict[str, str] = field(default_factory=dict)  # reason at the last look
    missing: list[str] = field(default_factory=list)  # datasets of the study without a file at the last look
    changed: float = 0.0  # when something was last seen to come, change or go
    waiting: float | None = None  # since when something is ready
    runs_until: float = 0.0  # runs that ended before are dealt with

    @classmethod
    def from_cursor(cls, cursor: str | None) -> Watch:
        """Read the sensor's cursor."""
        return cls(**json.loads(cursor)) if cursor else cls(runs_until=time.time())

    def to_cursor(self) -> str:
        """Write the sensor's cursor."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def observe(self, datasets: Sequence[DatasetFile], now: float) -> list[DatasetFile]:
        """Datasets that are new or changed and have come to rest: the same at two looks in a row."""
        present = {item.name: _short(item) for item in datasets}
        ready = [
            item
            for item in datasets
            if self.requested.get(item.name) != _short(item) and self.seen.get(item.name) == _short(item)
        ]
        if present != self.seen:
            self.seen, self.changed = present, now
            self.due = {name: due for name, due in self.due.items() if present.get(name) == due}
        self.waiting = (self.waiting or now) if ready else None
        return ready

    def is_quiet(self, now: float, quiet_seconds: float) -> bool:
        """Whether nothing more is to be waited for."""
        if self.waiting is not None and now - self.waiting >= _LONGEST_WAIT * quiet_seconds:
            return True
        return now - self.changed >= quiet_seconds

    def request(self, item: DatasetFile) -> int:
        """Note that a run is asked for; returns how many there have been."""
        if self.requested.get(item.name) not in (None, _short(item)):
            self.failures.pop(item.name, None)
        self.requested[item.name] = _short(item)
        self.due.pop(item.name, None)
        self.times[item.name] = self.times.get(item.name, 0) + 1
        return self.times[item.name]

    def settle(self, item: DatasetFile) -> None:
        """Note that a file needs no run."""
        self.requested[item.name] = _short(item)

    def departures(self, present: set[str]) -> list[str]:
        """Datasets whose source is gone; each is told once, and comes back when its file does."""
        missing = sorted(set(self.requested) - present)
        for name in missing:
            del self.requested[name]
            self.failures.pop(name, None)
        return missing


@dataclass
class Look:
    """What a look found.

    Attributes
    ----------
    requests
        Datasets to run, each with the number of runs asked for so far.
    names
        Datasets to add to the study's partitions.
    drops
        Datasets to take out of them.
    events
        What the UI shall show beside the assets.
    news
        Lines for the log, each told once.
    summary
        One line on the state of things.
    cursor
        What to remember.
    """

    requests: list[tuple[DatasetFile, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    events: list[dg.AssetObservation | dg.AssetCheckEvaluation] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    summary: str = ""
    cursor: str = ""


def look(
    study: StudySettings, instance: dg.DagsterInstance, cursor: str | None, now: float | None = None
) -> Look:
    """Look at the inbox once.

    Raises
    ------
    BadInput
        If the inbox cannot be listed.
    """
    return _Looking(study, instance, Watch.from_cursor(cursor), time.time() if now is None else now).run()


class _Comparison:
    """Compares datasets with what the storage holds."""

    def __init__(self, study: StudySettings) -> None:
        self._study, self._quarantine = study, Quarantine(study)
        self._store = Home.from_environment().store()
        self._stages = [item for item in stages(study) if item.per_dataset]

    def out_of_date(self, item: DatasetFile) -> bool:
        """Whether a dataset needs a run: not when this very file was processed or refused, by whatever means."""
        if self._quarantine.holds(item.name, item.identity):
            return False
        known = self._store.find((self._study.name, "raw_counts", item.name))
        if known is None or known.manifest.figures.get("identity") != item.identity:
            return True
        source = {item.name: str(known.manifest.inputs["source"])}
        return any(plan(self._study, self._stages, source, self._store).datasets.values())


class _Looking:
    def __init__(self, study: StudySettings, instance: dg.DagsterInstance, watch: Watch, now: float) -> None:
        self.study, self.instance, self.watch, self.now = study, instance, watch, now
        self.quarantine = Quarantine(study)
        self.comparison = _Comparison(study)
        self.found = Look()

    def run(self) -> Look:
        inbox = find_sources(self.study)
        by_name = {item.name: item for item in inbox.datasets}
        self._refusals(inbox)
        self._departures(inbox)
        self._failed_runs(by_name)
        self._second_chances(by_name)
        self._show_refusals()
        self.found.drops += left_behind(self.study, self.instance)
        waiting = self._requests(self.watch.observe(inbox.datasets, self.now))
        if waiting and not self.found.requests:
            self.found.summary = (
                f"{waiting} new or changed, waiting until the inbox and their runs are quiet."
            )
        else:
            self.found.summary = "No dataset is new or changed."
        self.found.summary += f" {self.quarantine.summary()}"
        self.found.cursor = self.watch.to_cursor()
        return self.found

    def _requests(self, ready: list[DatasetFile]) -> int:
        """Ask for runs where it is time; returns how many datasets wait."""
        if not ready or not self.watch.is_quiet(self.now, self.study.arrival.quiet_seconds):
            return len(ready)
        busy = self._busy()
        free = [item for item in ready if item.name not in busy]
        needed = self._needed(free)
        if needed is None:
            return len(ready)
        # All names at once, so that nothing is built without those whose runs are asked for later.
        self.found.names = [item.name for item in needed]
        self.found.requests = [(item, self.watch.request(item)) for item in needed[:REQUESTS_AT_ONCE]]
        return len(ready) - len(free) + len(needed)

    def _needed(self, free: Sequence[DatasetFile]) -> list[DatasetFile] | None:
        """Those that need a run; None where there are more than one look can compare with the storage."""
        end, compared = time.monotonic() + LOOK_SECONDS, 0
        for item in free:
            if self.watch.due.get(item.name) == _short(item):
                continue
            if compared and time.monotonic() > end:
                return None
            compared += 1
            if self.comparison.out_of_date(item):
                self.watch.due[item.name] = _short(item)
            else:
                self.watch.settle(item)
        return [item for item in free if item.name in self.watch.due]

    def _busy(self) -> set[str]:
        """Datasets that have to wait for the runs there are.

        One dataset, one run at a time; and while the study is being rebuilt, none of those that it is made
        of changes under its feet.
        """
        busy: set[str] = set()
        for run in self.instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
            if not _belongs(run, self.study.name):
                continue
            dataset = run.tags.get(_PARTITION)
            if dataset is not None:
                busy.add(dataset)
            else:
                busy |= set(self.instance.get_dynamic_partitions(partitions_name(self.study.name)))
        return busy

    def _refusals(self, inbox: Inbox) -> None:
        """Refuse what cannot even be listed as a dataset, once it has come to rest."""
        now = listed_refusals(inbox)
        before, self.watch.refused = self.watch.refused, now
        kept = {refusal.name for refusal in self.quarantine.all() if not refusal.is_dataset}
        settled = {name: reason for name, reason in now.items() if before.get(name) == reason}
        known = {name: reason for name, reason in now.items() if name in kept and name not in settled}
        news = self.quarantine.take_listing({**known, **settled})
        if news is not None:
            self.found.news += [f"Refused: {reason}" for reason in news]
            self.found.events.append(self.quarantine.evaluation())

    def _show_refusals(self) -> None:
        """Evaluate the check of the quarantine again where the UI does not show its state."""
        told = any(isinstance(event, dg.AssetCheckEvaluation) for event in self.found.events)
        if not told and not self.quarantine.is_shown(self.instance):
            self.found.events.append(self.quarantine.evaluation())

    def _departures(self, inbox: Inbox) -> None:
        """Let datasets leave whose source is gone, at two looks in a row and while nothing works on them."""
        known = set(self.instance.get_dynamic_partitions(partitions_name(self.study.name)))
        absent = missing(self.study, {*known, *self.watch.requested}, inbox)
        kept = [name for name in self.study.keep if name not in {item.name for item in inbox.datasets}]
        for name in self.watch.departures(set(self.watch.requested) - {*absent, *kept}):
            if refusal := self.quarantine.find(name):
                self.quarantine.lift(refusal)
                self.found.events.append(self.quarantine.evaluation())
            if name not in known:
                self.found.news.append(f"The source of dataset {name} is gone; it was not part of the study.")
            elif name in kept:
                self.found.events.append(gone(self.study, name))
                self.found.news.append(f"The source of dataset {name} is gone; its results are to be kept.")
        absent = sorted(known & set(absent))
        leaving, self.watch.missing = [name for name in absent if name in self.watch.missing], absent
        for name in sorted(set(leaving) - self._busy()) if leaving else []:
            self.found.drops.append(name)
            self.found.events.append(gone(self.study, name))
            self.found.news.append(
                f"The source of dataset {name} is gone: it leaves the study, whose results are without it from "
                "the next rebuild on. Put the file back, or name it under `keep` in the study's settings to keep it."
            )

    def _failed_runs(self, present: Mapping[str, DatasetFile]) -> None:
        """Run a dataset again whose run failed through no fault of the file; after some tries, give it up."""
        records = self.instance.get_run_records(
            dg.RunsFilter(
                statuses=[dg.DagsterRunStatus.FAILURE],
                tags={"study": self.study.name},
                updated_after=datetime.fromtimestamp(self.watch.runs_until, UTC),
            )
        )
        for record in records:
            self.watch.runs_until = max(self.watch.runs_until, record.update_timestamp.timestamp())
            item = present.get(record.dagster_run.tags.get(_PARTITION, ""))
            if item is None or record.dagster_run.tags.get(_WILL_RETRY) == "true":
                continue
            if self.watch.requested.get(item.name) == _short(item) and self.comparison.out_of_date(item):
                self._failed(item, record.dagster_run.run_id)

    def _failed(self, item: DatasetFile, run_id: str) -> None:
        failures = self.watch.failures[item.name] = self.watch.failures.get(item.name, 0) + 1
        if failures < self.study.arrival.attempts:
            del self.watch.requested[item.name]
            self.found.news.append(f"Run {run_id} of dataset {item.name} failed; it is tried again.")
            return
        self.found.events.extend(give_up(self.study, item, self.instance, run_id, failures))
        self.found.news.append(
            f"Run {run_id} of dataset {item.name} failed, the {failures}th; it is given up."
        )

    def _second_chances(self, present: Mapping[str, DatasetFile]) -> None:
        """Try refused datasets again when code or settings that refused them have changed."""
        for refusal in self.quarantine.all():
            if refusal.name in present and self.quarantine.outdated(refusal):
                self.watch.requested.pop(refusal.name, None)


def _belongs(run: dg.DagsterRun, study: str) -> bool:
    return run.tags.get("study") == study or any(key.path[0] == study for key in run.asset_selection or ())


def _short(item: DatasetFile) -> str:
    return item.identity[:_SHOWN]

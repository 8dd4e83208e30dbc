"""Sensors: a study's inbox is watched, and a new or changed dataset becomes a partition and a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import dagster as dg

from neumf_assets.assets.catalogue import stages
from neumf_assets.core.counts.discover import DatasetFile
from neumf_assets.core.errors import BadInput
from neumf_assets.home import Home
from neumf_assets.jobs import job_name
from neumf_assets.partitions import dataset_partitions, partitions_name
from neumf_assets.plan import plan
from neumf_assets.settings import StudySettings
from neumf_assets.sources import find_sources, source_digests

_POLL_SECONDS = 30


@dataclass
class Watch:
    """What the sensor remembers between ticks, by dataset."""

    seen: dict[str, str] = field(default_factory=dict)  # identity at the last tick
    requested: dict[str, str] = field(default_factory=dict)  # identity that a run was asked for
    times: dict[str, int] = field(default_factory=dict)  # how many runs were asked for

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "Watch":
        """Read the sensor's cursor."""
        return cls(**json.loads(cursor)) if cursor else cls()

    def to_cursor(self) -> str:
        """Write the sensor's cursor."""
        return json.dumps(asdict(self), sort_keys=True)

    def arrivals(self, datasets: Sequence[DatasetFile]) -> list[DatasetFile]:
        """Datasets that are new or changed and have come to rest: the same at two ticks in a row."""
        ready = [
            item
            for item in datasets
            if self.requested.get(item.name) != item.identity and self.seen.get(item.name) == item.identity
        ]
        self.seen = {item.name: item.identity for item in datasets}
        for item in ready:
            self.requested[item.name] = item.identity
            self.times[item.name] = self.times.get(item.name, 0) + 1
        return ready

    def departures(self, datasets: Sequence[DatasetFile]) -> list[str]:
        """Datasets whose source is gone; each is told once, and comes back when its file does."""
        gone = sorted(set(self.requested) - {item.name for item in datasets})
        for name in gone:
            del self.requested[name]
        return gone


def out_of_date(study: StudySettings, item: DatasetFile) -> bool:
    """Whether a dataset needs a run: not when this very file was processed already, by whatever means."""
    store = Home.from_environment().store()
    known = store.find((study.name, "raw_counts", item.name))
    if known is None or known.manifest.figures.get("identity") != item.identity:
        return True
    current = plan(study, stages(study), source_digests(study, store, [item]), store)
    return any(current.datasets.values())


def study_sensors(study: StudySettings) -> list[dg.SensorDefinition]:
    """The study's arrival sensor and the sensor that evaluates its automation conditions."""
    return [arrival_sensor(study), _automation_sensor(study)]


def arrival_sensor(study: StudySettings) -> dg.SensorDefinition:
    """Watches the inbox of a study."""

    @dg.sensor(
        name=f"{study.name}_arrivals",
        job_name=job_name(study.name, "train"),
        minimum_interval_seconds=_POLL_SECONDS,
        default_status=_unless_simulated(study),
        description="New or changed files in the inbox become datasets; each gets a run once it is complete.",
    )
    def arrivals(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            inbox = find_sources(study)
        except BadInput as error:
            return dg.SkipReason(str(error))
        watch = Watch.from_cursor(context.cursor)
        for reason in inbox.refused:
            context.log.warning(str(reason))
        for name in watch.departures(inbox.datasets):
            context.log.warning(
                f"The source of dataset {name} is gone; its results stay. Put the file back, or delete the "
                f"partition {name} of {partitions_name(study.name)} to leave it out of the study."
            )
        ready = [item for item in watch.arrivals(inbox.datasets) if out_of_date(study, item)]
        context.update_cursor(watch.to_cursor())
        return _requests(study, ready, watch.times)

    return arrivals


def _unless_simulated(study: StudySettings) -> dg.DefaultSensorStatus:
    """Nobody sends data to a simulated study: opening the UI should not start work on it."""
    return dg.DefaultSensorStatus.STOPPED if study.simulate else dg.DefaultSensorStatus.RUNNING


def _requests(
    study: StudySettings, ready: Sequence[DatasetFile], times: Mapping[str, int]
) -> dg.SensorResult | dg.SkipReason:
    if not ready:
        return dg.SkipReason("No dataset is new or changed.")
    return dg.SensorResult(
        dynamic_partitions_requests=[
            dataset_partitions(study.name).build_add_request([item.name for item in ready])
        ],
        run_requests=[
            # Run keys last for ever; the count lets a file that goes back to an earlier content run again.
            dg.RunRequest(
                run_key=f"{item.name}-{item.identity[:16]}-{times[item.name]}", partition_key=item.name
            )
            for item in ready
        ],
    )


def _automation_sensor(study: StudySettings) -> dg.SensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        f"{study.name}_automation",
        target=dg.AssetSelection.groups(study.name),
        default_status=_unless_simulated(study),
        minimum_interval_seconds=_POLL_SECONDS,
        description="Rebuilds what needs all datasets once they have come to rest.",
    )

"""Sensors: a study's inbox is watched, and a new or changed dataset becomes a partition and a run."""

import dagster as dg

from neumf_assets.core.counts.discover import DatasetFile
from neumf_assets.core.errors import BadInput
from neumf_assets.freshness.reuse import REUSE_TAG
from neumf_assets.intake.arrival import Look, look
from neumf_assets.study.names import dataset_partitions, job_name
from neumf_assets.study.settings import StudySettings


def study_sensors(study: StudySettings) -> list[dg.SensorDefinition]:
    """The study's arrival sensor and the sensor that evaluates its automation conditions."""
    return [arrival_sensor(study), _automation_sensor(study)]


def arrival_sensor(study: StudySettings) -> dg.SensorDefinition:
    """Watches the inbox of a study."""

    @dg.sensor(
        name=f"{study.name}_arrivals",
        job_name=job_name(study.name, "train"),
        minimum_interval_seconds=study.arrival.poll_seconds,
        default_status=_unless_simulated(study),
        description="New or changed files in the inbox become datasets; each gets a run once it is complete.",
    )
    def arrivals(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            seen = look(study, context.instance, context.cursor)
        except BadInput as error:
            return dg.SkipReason(str(error))
        for line in seen.news:
            context.log.warning(line)
        context.update_cursor(seen.cursor)
        if not (seen.requests or seen.events or seen.drops):
            return dg.SkipReason(seen.summary)
        return dg.SensorResult(
            run_requests=[_request(item, count) for item, count in seen.requests],
            dynamic_partitions_requests=_partition_changes(study, seen),
            asset_events=seen.events,
            skip_reason=None if seen.requests else seen.summary,
        )

    return arrivals


def _request(item: DatasetFile, count: int) -> dg.RunRequest:
    return dg.RunRequest(
        # Run keys last for ever; the count lets a file that goes back to an earlier content run again.
        run_key=f"{item.name}-{item.identity[:16]}-{count}",
        partition_key=item.name,
        tags={REUSE_TAG: "true"},
    )


def _partition_changes(
    study: StudySettings, seen: Look
) -> list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest]:
    partitions = dataset_partitions(study.name)
    drops = [name for name in seen.drops if name not in seen.names]
    changes: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if seen.names:
        changes.append(partitions.build_add_request(seen.names))
    if drops:
        changes.append(partitions.build_delete_request(drops))
    return changes


def _unless_simulated(study: StudySettings) -> dg.DefaultSensorStatus:
    """Nobody sends data to a simulated study: opening the UI should not start work on it."""
    return dg.DefaultSensorStatus.STOPPED if study.simulate else dg.DefaultSensorStatus.RUNNING


def _automation_sensor(study: StudySettings) -> dg.SensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        f"{study.name}_automation",
        target=dg.AssetSelection.groups(study.name),
        default_status=_unless_simulated(study),
        minimum_interval_seconds=study.arrival.poll_seconds,
        run_tags={"study": study.name, REUSE_TAG: "true"},
        description="Rebuilds what needs all datasets once they have come to rest.",
    )

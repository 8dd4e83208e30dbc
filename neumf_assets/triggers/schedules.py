"""Schedules: a timed refresh of whatever is out of date, and a full training where data were only mapped."""

import dagster as dg

from neumf_assets.study.names import job_name
from neumf_assets.study.settings import StudySettings
from neumf_assets.triggers.refresh import out_of_date_requests, retrain_requests


def study_schedules(study: StudySettings) -> list[dg.ScheduleDefinition]:
    """The schedules that the study's settings ask for."""
    schedules = []
    if study.schedule.cron is not None:
        schedules.append(refresh_schedule(study, study.schedule.cron))
    if study.schedule.retrain is not None and study.update != "retrain" and "ineumf" in study.arms:
        schedules.append(retrain_schedule(study, study.schedule.retrain))
    return schedules


def refresh_schedule(study: StudySettings, cron: str) -> dg.ScheduleDefinition:
    """Requests a run for each dataset with something out of date, or one for the study's own assets."""

    @dg.schedule(
        name=f"{study.name}_refresh",
        cron_schedule=cron,
        execution_timezone=study.schedule.timezone,
        job_name=job_name(study.name, "everything"),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Brings everything of the study that is out of date up to date.",
    )
    def refresh(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        requests = out_of_date_requests(study, context.instance)
        return requests or dg.SkipReason("Everything is up to date.")

    return refresh


def retrain_schedule(study: StudySettings, cron: str) -> dg.ScheduleDefinition:
    """Requests a training on all datasets where some were only mapped onto the integrative model."""

    @dg.schedule(
        name=f"{study.name}_retrain",
        cron_schedule=cron,
        execution_timezone=study.schedule.timezone,
        job_name=job_name(study.name, "integrate"),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Trains the integrative NeuMF on all datasets, where some were only mapped onto it.",
    )
    def retrain(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        requests = retrain_requests(study)
        return requests or dg.SkipReason("The integrative model was trained on all of its datasets.")

    return retrain

"""Schedules: a timed refresh of whatever is out of date, where the study asks for one."""

import dagster as dg

from neumf_assets.jobs import job_name
from neumf_assets.settings import StudySettings


def study_schedules(study: StudySettings) -> list[dg.ScheduleDefinition]:
    """The study's refresh, switched off unless its settings give a cron expression."""
    if study.schedule.cron is None:
        return []
    return [refresh_schedule(study, study.schedule.cron)]


def refresh_schedule(study: StudySettings, cron: str) -> dg.ScheduleDefinition:
    """Requests a run for each dataset with something out of date, and one for the study's own assets."""

    @dg.schedule(
        name=f"{study.name}_refresh",
        cron_schedule=cron,
        execution_timezone=study.schedule.timezone,
        job_name=job_name(study.name, "everything"),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Brings everything of the study that is out of date up to date.",
    )
    def refresh(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        from neumf_assets.refresh import out_of_date_requests

        requests = out_of_date_requests(study, context.instance)
        return requests or dg.SkipReason("Everything is up to date.")

    return refresh

"""When Dagster rebuilds what belongs to a study as a whole.

Datasets are processed by the runs that the arrival sensor asks for. What needs all datasets waits until every
dataset is complete and none is in progress, then is rebuilt once, in one run. ``AutomationCondition.eager()``
would lose a dataset that lands while a rebuild is under way: its trigger is forgotten when the run it waited
for ends.
"""

import datetime
from collections.abc import Sequence
from functools import reduce
from operator import and_

import dagster as dg

from neumf_assets.assets.stage import Stage
from neumf_assets.settings import StudySettings


def condition_of(
    declared: Stage, study: StudySettings, everything: Sequence[Stage]
) -> dg.AutomationCondition | None:
    """The automation condition of a stage: none for a dataset's own assets, a rebuild for the study's.

    Parameters
    ----------
    declared, study
        The stage and its study.
    everything
        All stages of the study.
    """
    if declared.per_dataset:
        return None
    condition = dg.AutomationCondition
    rebuilt = rebuilt_when(condition.newly_missing() | any_deps_changed())
    return reduce(and_, datasets_at_rest(study, everything), rebuilt)


def rebuilt_when(trigger: dg.AutomationCondition) -> dg.AutomationCondition:
    """Request once after ``trigger``, as soon as nothing upstream is missing, failing or in progress.

    The trigger is remembered until a request follows it, so a dataset that lands during a rebuild starts
    another one.
    """
    condition = dg.AutomationCondition
    return (
        trigger.since((condition.newly_requested() & ~trigger) | condition.initial_evaluation())
        & ~condition.any_deps_missing()
        & condition.all_deps_blocking_checks_passed()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
    )


def any_deps_changed() -> dg.AutomationCondition:
    """An upstream asset was made anew with another result, or will be: the same file again changes nothing."""
    condition = dg.AutomationCondition
    updated = (
        condition.newly_updated() & condition.data_version_changed() & ~condition.executed_with_root_target()
    )
    return condition.any_deps_match(updated | condition.will_be_requested()).with_label("any_deps_changed")


def datasets_at_rest(study: StudySettings, everything: Sequence[Stage]) -> list[dg.AutomationCondition]:
    """No dataset's asset is queued or in progress, and what the study takes from datasets is there.

    Also for assets further down, or an arm that is ready early would be compared with the old version of one
    that is not.
    """
    condition = dg.AutomationCondition
    own = [item for item in everything if item.per_dataset]
    taken = {name for item in everything if not item.per_dataset for name in item.inputs}

    def of_any(item: Stage, what: dg.AutomationCondition) -> dg.AutomationCondition:
        return condition.asset_matches([study.name, *item.name], what)

    resting = [~of_any(item, condition.in_progress()) for item in own]
    return [*resting, *(~of_any(item, condition.missing()) for item in own if item.path in taken)]


def freshness_of(declared: Stage, study: StudySettings) -> dg.FreshnessPolicy | None:
    """How old a result may grow before the UI calls it overdue: only for a study that is fed regularly."""
    hours = study.schedule.fresh_within_hours
    if declared.per_dataset or hours is None:
        return None
    limit = datetime.timedelta(hours=hours)
    return dg.FreshnessPolicy.time_window(fail_window=limit, warn_window=limit * 0.75)

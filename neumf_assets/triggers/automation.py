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

from neumf_assets.assets.catalogue import PER_DATASET, direct_inputs
from neumf_assets.assets.stage import Stage
from neumf_assets.study.settings import StudySettings


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
    if not PER_DATASET & set(direct_inputs(everything)[declared.path]):
        return rebuilt  # follows what it depends on
    return reduce(and_, study_at_rest(study, everything), rebuilt)


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


def study_at_rest(study: StudySettings, everything: Sequence[Stage]) -> list[dg.AutomationCondition]:
    """No run is queued or in progress, and what the study takes from datasets is there.

    Otherwise an arm that is ready early would be compared with the old version of one that is not, and what a
    rebuild has made already would be made again while the rest of it is under way. Looking at the last assets
    of a dataset's run and of a rebuild is enough.
    """
    condition = dg.AutomationCondition
    followed = {
        name: [item.per_dataset for item in everything if name in item.inputs]
        for name in (item.path for item in everything)
    }

    def of_any(item: Stage, what: dg.AutomationCondition) -> dg.AutomationCondition:
        return condition.asset_matches([study.name, *item.name], what)

    last = [item for item in everything if item.per_dataset not in followed[item.path]]
    resting = [~of_any(item, condition.in_progress()) for item in last]
    taken = [item for item in last if item.per_dataset and followed[item.path]]
    return [*resting, *(~of_any(item, condition.missing()) for item in taken)]


def freshness_of(declared: Stage, study: StudySettings) -> dg.FreshnessPolicy | None:
    """How old a result may grow before the UI calls it overdue: only for a study that is fed regularly."""
    hours = study.schedule.fresh_within_hours
    if declared.per_dataset or hours is None:
        return None
    limit = datetime.timedelta(hours=hours)
    return dg.FreshnessPolicy.time_window(fail_window=limit, warn_window=limit * 0.75)

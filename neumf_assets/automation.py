"""When Dagster rebuilds what belongs to a study as a whole.

Datasets are processed by the runs that the arrival sensor asks for. What needs all datasets waits until none
of them is in progress, then is rebuilt once. ``AutomationCondition.eager()`` would lose a dataset that lands
while a rebuild is under way: its trigger is forgotten when the run it waited for ends.
"""

import dagster as dg

from neumf_assets.assets.stage import Stage
from neumf_assets.settings import StudySettings


def condition_of(declared: Stage, study: StudySettings) -> dg.AutomationCondition | None:
    """The automation condition of a stage: none for a dataset's own assets, a rebuild for the study's."""
    if declared.per_dataset:
        return None
    condition = dg.AutomationCondition
    return rebuilt_when(condition.newly_missing() | condition.any_deps_updated())


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

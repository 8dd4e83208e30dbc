"""Asset checks: what a stage found about the quality of its own result, in Dagster's terms."""

from collections.abc import Sequence

import dagster as dg

from neumf_assets.assets.stage import CheckOutcome, Stage
from neumf_assets.settings import StudySettings


def check_specs(declared: Stage, study: StudySettings) -> list[dg.AssetCheckSpec]:
    """The checks that a stage reports on every materialisation."""
    key = dg.AssetKey([study.name, *declared.name])
    return [
        dg.AssetCheckSpec(name=name, asset=key, description=description)
        for name, description in declared.checks
    ]


def check_results(
    declared: Stage, study: StudySettings, outcomes: Sequence[CheckOutcome]
) -> list[dg.AssetCheckResult]:
    """Every outcome warns; data that cannot be used raises before anything is written, so none blocks."""
    key = dg.AssetKey([study.name, *declared.name])
    return [
        dg.AssetCheckResult(
            asset_key=key,
            check_name=outcome.name,
            passed=outcome.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=outcome.description,
            metadata=dict(outcome.figures),
        )
        for outcome in outcomes
    ]

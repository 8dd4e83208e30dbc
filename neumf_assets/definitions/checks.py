"""Asset checks: what a stage found about the quality of its own result, in Dagster's terms."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from neumf_assets.assets.stage import CheckOutcome, Product, Stage, Step
from neumf_assets.intake.quarantine import CHECK, CHECK_DESCRIPTION, Quarantine
from neumf_assets.study.settings import StudySettings

NO_WORSE = "no_worse_than_before"


@dataclass(frozen=True)
class Watched:
    """A figure that should not get worse from one materialisation to the next.

    ``slack`` is how much worse it may be without a warning: a share of the figure before where ``relative``.
    """

    figure: str
    higher_is_better: bool
    slack: float
    relative: bool = False

    def worsened(self, before: float, now: float) -> bool:
        """Whether the figure got worse by more than the slack."""
        allowed = self.slack * (abs(before) if self.relative else 1.0)
        return (before - now if self.higher_is_better else now - before) > allowed


def watched_figures(declared: Stage, study: StudySettings) -> tuple[Watched, ...]:
    """The figures of a stage that are compared with those of the version before."""
    return {
        "counts": (Watched("cells", True, 0.2, relative=True), Watched("genes", True, 0.2, relative=True)),
        "neumf_evaluation": (Watched(f"deviance_{study.model.kind}", False, 0.02, relative=True),),
        "metrics": (
            Watched("ari_mean", True, 0.05),
            Watched("ami_mean", True, 0.05),
            Watched("cross_batch_label_accuracy", True, 0.05),
        ),
    }.get(declared.name[-1], ())


def check_specs(declared: Stage, study: StudySettings) -> list[dg.AssetCheckSpec]:
    """The checks that a stage reports on every materialisation."""
    key = dg.AssetKey([study.name, *declared.name])
    described = dict(declared.checks)
    if watched := watched_figures(declared, study):
        names = ", ".join(one.figure for one in watched)
        described[NO_WORSE] = f"No worse than the version before, within a margin: {names}."
    if declared.path == "raw_counts":
        described[CHECK] = CHECK_DESCRIPTION
    return [dg.AssetCheckSpec(name=name, asset=key, description=text) for name, text in described.items()]


def outcomes(declared: Stage, step: Step, product: Product) -> list[CheckOutcome]:
    """The stage's own outcomes, with those that every stage of its kind gets."""
    found = list(product.checks)
    if watched := watched_figures(declared, step.study):
        found.append(no_worse(watched, step.previous, product.figures))
    if declared.path == "raw_counts":
        evaluation = Quarantine(step.study).evaluation()
        found.append(CheckOutcome(CHECK, evaluation.passed, evaluation.description or ""))
    return found


def no_worse(
    watched: tuple[Watched, ...], before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> CheckOutcome:
    """Compare figures with those of the version before; passes where there is none."""
    pairs = {
        one: (float((before or {})[one.figure]), float(now[one.figure]))
        for one in watched
        if _is_number((before or {}).get(one.figure)) and _is_number(now.get(one.figure))
    }
    if not pairs:
        return CheckOutcome(NO_WORSE, True, "There is no version before to compare with.")
    worse = [one for one, (old, new) in pairs.items() if one.worsened(old, new)]
    listed = ", ".join(f"{one.figure} {old:.4g} → {new:.4g}" for one, (old, new) in pairs.items())
    verdict = f"Worse: {', '.join(one.figure for one in worse)}. " if worse else ""
    figures = {one.figure: new for one, (_, new) in pairs.items()}
    figures |= {f"{one.figure} before": old for one, (old, _) in pairs.items()}
    return CheckOutcome(NO_WORSE, not worse, f"{verdict}{listed}.", figures)


def check_results(
    declared: Stage, study: StudySettings, found: list[CheckOutcome]
) -> Iterator[dg.AssetCheckResult]:
    """Every outcome warns; data that cannot be used raises before anything is written, so none blocks."""
    for outcome in found:
        yield dg.AssetCheckResult(
            asset_key=dg.AssetKey([study.name, *declared.name]),
            check_name=outcome.name,
            passed=outcome.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=outcome.description,
            metadata=dict(outcome.figures),
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

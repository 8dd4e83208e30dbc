"""The scores of arms in the forms that the report's tables and pictures take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neumf_assets.core.cells.scoring.scores import ArmScores
    from neumf_assets.core.report.plots.scores import RunScore


def known_scores(scores: ArmScores) -> dict[str, float]:
    """The single scores that are known; not how many cells there were, nor the spread of others."""
    hidden = {"n_cells", "n_labelled", "ari_mean_sd", "ami_mean_sd"}
    return {k: v for k, v in scores.summary().items() if k not in hidden and v is not None}


def run_scores(scores: Mapping[str, ArmScores]) -> list[RunScore]:
    """One entry for each arm, resolution and seed, for the picture."""
    from neumf_assets.core.report.plots.scores import RunScore

    return [
        RunScore(arm, run.resolution, run.seed, {"ari": run.ari, "ami": run.ami, "nmi": run.nmi})
        for arm, found in scores.items()
        for run in found.runs
    ]

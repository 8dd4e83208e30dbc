"""Sections on the models: held-out counts and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neumf_assets.core.report import plots
from neumf_assets.core.report.content import DatasetEvaluation, ReportContent
from neumf_assets.core.report.html.parts import Cell, Picture, Table, any_values
from neumf_assets.core.report.wording import arm_title, mean, method_title, number


def denoising_section(content: ReportContent) -> dict[str, Any] | None:
    """How well counts are predicted that no model has seen."""
    evaluations = [e for e in content.evaluations if e.deviance or e.ranking or e.predicted is not None]
    if not evaluations:
        return None
    pictures = [
        Picture(
            plots.calibration(e.predicted, e.observed, e.dataset),
            f"Predicted against observed mean counts of {e.dataset}",
        )
        for e in evaluations
        if e.predicted is not None and e.observed is not None and len(e.predicted)
    ]
    return {
        "id": "denoising",
        "title": "Prediction of unseen counts",
        "kind": "denoising",
        "table": _deviance_table(evaluations),
        "pictures": pictures,
        "ranking": _ranking_table(evaluations),
    }


def _deviance_table(evaluations: Sequence[DatasetEvaluation]) -> Table | None:
    methods = list(dict.fromkeys(m for e in evaluations for m in e.deviance))
    if not methods:
        return None
    methods.sort(key=lambda m: -(mean([e.deviance.get(m) for e in evaluations]) or 0.0))
    rows = []
    for method in methods:
        cells = []
        for e in evaluations:
            value = e.deviance.get(method)
            known = [round(v, 4) for v in e.deviance.values() if v == v]
            cells.append(
                Cell(number(value, 4), best=value is not None and round(value, 4) == min(known, default=0))
            )
        rows.append((method_title(method), cells))
    own = method_title(evaluations[0].model)
    return Table([e.dataset for e in evaluations], rows, "Method", highlight=own, badge="our model")


def _ranking_table(evaluations: Sequence[DatasetEvaluation]) -> Table | None:
    measures = list(dict.fromkeys(m for e in evaluations for own in e.ranking.values() for m in own))
    rows = [
        (
            f"{e.dataset}: {method_title(method)}" if len(evaluations) > 1 else method_title(method),
            [Cell(number(own.get(measure))) for measure in measures],
        )
        for e in evaluations
        for method, own in e.ranking.items()
    ]
    return Table(measures, rows, "Ranker") if rows else None


def training_section(content: ReportContent) -> dict[str, Any] | None:
    """How losses and objectives fell."""
    pictures = []
    losses = {c.name: c.series for c in content.curves if c.kind == "loss" and any_values(c.series)}
    if losses:
        pictures.append(
            Picture(
                plots.loss_curves({arm_title(n): s for n, s in losses.items()}),
                "Loss by epoch, training and validation",
                "Training of the neural models. The validation loss is measured on entries left out of it.",
            )
        )
    objectives = {
        (f"{arm_title(c.name)}: {name}" if len(c.series) > 1 else arm_title(c.name)): values
        for c in content.curves
        if c.kind == "objective"
        for name, values in c.series.items()
        if len(values)
    }
    if objectives:
        pictures.append(
            Picture(
                plots.objective_curve(objectives),
                "Objective of the matrix factorisation by iteration",
                "Integrative NMF: reconstruction error and penalty, which must fall at every iteration.",
            )
        )
    if not pictures:
        return None
    return {"id": "training", "title": "Training", "kind": "pictures", "pictures": pictures}

"""What is seen first: the tiles, the sentences in short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neumf_assets.core.report.content import DatasetEvaluation, ReportContent
from neumf_assets.core.report.html.parts import main_arm, mean_scores
from neumf_assets.core.report.palette import MISSING_NAME, category_names
from neumf_assets.core.report.wording import ARMS, arm_title, headline, mean, number, percent


def summary(content: ReportContent) -> str:
    """One sentence on the data."""
    if not content.datasets:
        return ""
    many = len(content.datasets)
    sizes = ", ".join(f"{d.name} ({number(d.cells)} cells)" for d in content.datasets[:8])
    rest = f" and {many - 8} more" if many > 8 else ""
    return f"{many} dataset{'s' if many > 1 else ''} of single-cell RNA counts: {sizes}{rest}."


def tiles(content: ReportContent) -> list[tuple[str, str]]:
    """Figures to see at first glance: (value, what it is)."""
    tiles: list[tuple[str, str]] = []
    if content.datasets:
        cells = sum(d.cells for d in content.datasets)
        tiles.append((number(cells), "cells"))
        if len(content.datasets) > 1:
            tiles.append((number(len(content.datasets)), "datasets"))
        tiles.append((number(max(d.genes for d in content.datasets)), "genes"))
        zeros = [d.zero_fraction for d in content.datasets]
        if mean(zeros) is not None:
            tiles.append((percent(mean(zeros)), "zeros"))
    arm = main_arm(content)
    if arm is not None and arm.cluster is not None:
        tiles.append((number(len(set(category_names(arm.cluster)) - {MISSING_NAME})), "clusters"))
    return tiles


def headline_section(content: ReportContent) -> dict[str, Any] | None:
    """What came out, in plain sentences."""
    comparison = content.comparison
    if comparison is None or not comparison.scores:
        return None
    best = comparison.best_arm
    sentences = headline(best, mean_scores(comparison))
    sentences += _denoising_sentences(content.evaluations)
    if not sentences and best is None:
        return None
    return {
        "id": "in-short",
        "title": "In short",
        "kind": "headline",
        "best": arm_title(best) if best else "",
        "best_meaning": ARMS[best][1] if best in ARMS else "",
        "chosen": bool(best and comparison.rule and len(comparison.scores) > 1),
        "sentences": sentences,
    }


def _denoising_sentences(evaluations: Sequence[DatasetEvaluation]) -> list[str]:
    gains = [gain for gain in map(_gain, evaluations) if gain is not None]
    if not gains:
        return []
    better = sum(g > 0 for g in gains)
    if better < len(gains):
        return [
            f"In {len(gains) - better} of {len(gains)} datasets a simpler method predicts unseen counts at "
            "least as well as the neural model: prefer the simpler one there."
        ]
    least, most = percent(min(gains)), percent(max(gains))
    by = least if least == most else f"{least} to {most}"
    return [
        f"The neural model predicts counts that it has not seen better than every simpler method, by {by}."
    ]


def _gain(evaluation: DatasetEvaluation) -> float | None:
    """By how much the model's held-out deviance lies below the best rival's (share of the latter)."""
    own = evaluation.deviance.get(evaluation.model)
    ours = (evaluation.model, evaluation.part)
    others = [v for k, v in evaluation.deviance.items() if k not in ours and v == v]
    return None if own is None or own != own or not others else 1 - own / min(others)

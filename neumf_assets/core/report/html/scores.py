"""Sections on the arms' scores: compared, explained, and LIGER's other settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neumf_assets.core.report import plots
from neumf_assets.core.report.content import Comparison, ReportContent
from neumf_assets.core.report.html.parts import Cell, Picture, Table, mean_scores
from neumf_assets.core.report.wording import METRICS, arm_title, expected_share, mean, metric, number


def comparison_section(content: ReportContent) -> dict[str, Any] | None:
    """The scores of the arms, as a table and over the resolutions."""
    comparison = content.comparison
    if comparison is None or not (comparison.scores or comparison.runs):
        return None
    picture = None
    if any(v is not None for run in comparison.runs for v in run.scores.values()):
        names = {run.arm: arm_title(run.arm) for run in comparison.runs}
        picture = Picture(
            plots.comparison(comparison.runs, names=names),
            "Scores of the arms by clustering resolution",
            "Agreement of clusters with labels. Line: mean over seeds; band and dots: the single seeds.",
        )
    many = len(comparison.scores) > 1
    return {
        "id": "comparison",
        "title": "Comparison of the arms" if many else "Scores",
        "kind": "comparison",
        "table": _score_table(comparison),
        "seeds": max((len(v) for s in comparison.scores.values() for v in s.values()), default=0),
        "picture": picture,
        "many": many,
        "shuffled": bool(comparison.chance),
        "rule": comparison.rule if many else "",
    }


def _score_table(comparison: Comparison) -> Table | None:
    scores = comparison.scores
    present = {k for s in scores.values() for k, v in s.items() if mean(v) is not None}
    keys = [k for k in METRICS if k in present] + sorted(present - set(METRICS))
    if not keys:
        return None
    means = mean_scores(comparison)
    rows = []
    for key in keys:
        best = _best_arm_of(key, means)
        cells = [_score_cell(key, own.get(key, ()), arm in best) for arm, own in scores.items()]
        if comparison.chance:
            cells.append(Cell(number(comparison.chance.get(key))))
        rows.append((metric(key).title, cells))
    columns = [arm_title(arm) for arm in scores] + (["Shuffled data"] if comparison.chance else [])
    winner = arm_title(comparison.best_arm) if comparison.best_arm else ""
    return Table(columns, rows, "Score", highlight=winner, badge="best" if winner else "")


def _best_arm_of(key: str, means: Mapping[str, Mapping[str, float | None]]) -> set[str]:
    """Arms that show the best value of a metric, as written (so that ties are ties)."""
    better = metric(key).better
    known = {arm: own[key] for arm, own in means.items() if own.get(key) is not None}
    if better == "none" or len(known) < 2:
        return set()
    rank: dict[str, float] = {}
    for arm, value in known.items():
        value = float(value or 0.0)
        if better == "expected":
            value = -abs(value - (expected_share(means[arm]) or 0.0))
        rank[arm] = round(-value if better == "lower" else value, 3)
    top = max(rank.values())
    return {arm for arm, value in rank.items() if value == top}


def _score_cell(key: str, values: Sequence[float | None], best: bool) -> Cell:
    known = [v for v in values if v is not None and v == v]
    digits = {"n_clusters": 0, "seconds": 1}.get(key, 3)
    spread = f"{number(min(known), digits)} to {number(max(known), digits)}" if len(set(known)) > 1 else ""
    return Cell(number(mean(values), 1 if spread and key == "n_clusters" else digits), spread, best)


def explained_section(content: ReportContent) -> dict[str, Any] | None:
    """What the scores mean."""
    if content.comparison is None:
        return None
    present = {k for s in content.comparison.scores.values() for k, v in s.items() if mean(v) is not None}
    entries = [(METRICS[k].title, METRICS[k].meaning) for k in METRICS if k in present]
    if not entries:
        return None
    return {
        "id": "scores-explained",
        "title": "What the scores mean",
        "kind": "explained",
        "entries": entries,
    }


def sweep_section(content: ReportContent) -> dict[str, Any] | None:
    """LIGER with other numbers of factors and other lambdas."""
    if not content.sweep:
        return None
    tables = []
    for varied, title in (
        ("k", "Number of factors, k"),
        ("lambda", "Penalty of the datasets' own part, lambda"),
    ):
        rows = [
            (
                f"{row.k if varied == 'k' else row.lam:g}",
                [Cell(number(row.objective)), Cell(number(row.divergence)), Cell(number(row.seconds, 1))],
            )
            for row in content.sweep
            if row.varied == varied
        ]
        if rows:
            tables.append((title, Table(["Objective", "Divergence, bits", "Seconds"], rows, corner=varied)))
    return {"id": "sweep", "title": "Choice of k and lambda", "kind": "sweep", "tables": tables}

"""A study's report as one HTML file that needs nothing else: styles and pictures are inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neumf_assets.core.report import plots
from neumf_assets.core.report.content import (
    ArmResult,
    Comparison,
    DatasetEvaluation,
    DatasetSummary,
    ReportContent,
)
from neumf_assets.core.report.image import data_uri, inches_wide
from neumf_assets.core.report.palette import MISSING_NAME, category_names, colour_map, ordered
from neumf_assets.core.report.plots.basis import Values
from neumf_assets.core.report.wording import (
    ARMS,
    METRICS,
    arm_title,
    expected_share,
    headline,
    mean,
    method_title,
    metric,
    number,
    percent,
)


@dataclass(frozen=True)
class Picture:
    """A PNG to embed, with the words for those who cannot see it."""

    image: bytes
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """Address that holds the image itself."""
        return data_uri(self.image)

    @property
    def width(self) -> int:
        """Width in CSS pixels, so that letters have the same size in all pictures."""
        return round(96 * inches_wide(self.image))


@dataclass(frozen=True)
class Cell:
    """One cell of a table: main text, a smaller remark below, and whether it is the best of its column."""

    text: str
    remark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table: the first column names the rows; the row or column called ``highlight`` is stressed."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    corner: str = ""
    highlight: str = ""
    badge: str = ""
    wordy: bool = False


def render_report(content: ReportContent, path: str | Path) -> Path:
    """Write the report of a study.

    Parameters
    ----------
    content
        What to show; sections without data are left out.
    path
        The HTML file; replaced atomically, its folder made if absent.

    Returns
    -------
    The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(report_html(content))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def report_html(content: ReportContent) -> str:
    """The report of a study as text; the same content gives the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent)
    sections = [section for build in _SECTIONS if (section := build(content)) is not None]
    return environment.get_template("report.html").render(
        content=content,
        heading=content.title or content.study,
        tiles=_tiles(content),
        summary=_summary(content),
        sections=sections,
    )


# --- first page -----------------------------------------------------------------------------------


def _summary(content: ReportContent) -> str:
    if not content.datasets:
        return ""
    many = len(content.datasets)
    sizes = ", ".join(f"{d.name} ({number(d.cells)} cells)" for d in content.datasets[:8])
    rest = f" and {many - 8} more" if many > 8 else ""
    return f"{many} dataset{'s' if many > 1 else ''} of single-cell RNA counts: {sizes}{rest}."


def _tiles(content: ReportContent) -> list[tuple[str, str]]:
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
    arm = _main_arm(content)
    if arm is not None and arm.cluster is not None:
        tiles.append((number(len(set(category_names(arm.cluster)) - {MISSING_NAME})), "clusters"))
    return tiles


def _main_arm(content: ReportContent) -> ArmResult | None:
    """The best arm, else the one whose markers are shown, else the first."""
    best = content.comparison.best_arm if content.comparison else None
    for name in (best, content.markers_arm):
        for arm in content.arms:
            if arm.name == name:
                return arm
    return content.arms[0] if content.arms else None


def _mean_scores(comparison: Comparison) -> dict[str, dict[str, float | None]]:
    return {
        arm: {key: mean(values) for key, values in scores.items()}
        for arm, scores in comparison.scores.items()
    }


def _headline_section(content: ReportContent) -> dict[str, Any] | None:
    comparison = content.comparison
    if comparison is None or not comparison.scores:
        return None
    best = comparison.best_arm
    sentences = headline(best, _mean_scores(comparison))
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
    """By how much the model's held-out deviance lies below the best other's (share of the latter)."""
    own = evaluation.deviance.get(evaluation.model)
    others = [v for k, v in evaluation.deviance.items() if k != evaluation.model and v == v]
    return None if own is None or own != own or not others else 1 - own / min(others)


# --- sections -------------------------------------------------------------------------------------


def _data_section(content: ReportContent) -> dict[str, Any] | None:
    if not content.datasets:
        return None
    known = {
        d.name: plots.CellQC(d.total_counts, d.genes_per_cell, d.mito_share)
        for d in content.datasets
        if d.total_counts is not None and d.genes_per_cell is not None
    }
    picture = None
    if known:
        picture = Picture(
            plots.qc_histograms(known, content.qc_thresholds),
            "Histograms over cells of counts, genes and mitochondrial share, one colour per dataset",
            "Distributions over the cells. Dashed: the bounds of quality control.",
        )
    return {
        "id": "data",
        "title": "Data and quality control",
        "kind": "data",
        "table": _dataset_table(content.datasets),
        "picture": picture,
    }


def _dataset_table(datasets: Sequence[DatasetSummary]) -> Table:
    columns: list[tuple[str, Callable[[DatasetSummary], Cell | None]]] = [
        ("Cells", lambda d: _kept(d.cells, d.cells_read)),
        ("Genes", lambda d: _kept(d.genes, d.genes_read)),
        ("Zeros", lambda d: None if d.zero_fraction is None else Cell(percent(d.zero_fraction))),
        ("Counts per cell", lambda d: _median(d.total_counts)),
        ("Genes per cell", lambda d: _median(d.genes_per_cell)),
        ("Mitochondrial", lambda d: _median(d.mito_share, share=True)),
        (
            "Left out",
            lambda d: Cell("", "; ".join(f"{k}: {v:,}" for k, v in d.removed.items())) if d.removed else None,
        ),
    ]
    cells = {title: [make(d) for d in datasets] for title, make in columns}
    shown = [title for title, column in cells.items() if any(c is not None for c in column)]
    rows = [(d.name, [cells[t][i] or Cell("–") for t in shown]) for i, d in enumerate(datasets)]
    return Table(shown, rows, corner="Dataset")


def _kept(kept: int, read: int | None) -> Cell:
    return Cell(number(kept), f"of {number(read)}" if read is not None and read != kept else "")


def _median(values: Values | None, share: bool = False) -> Cell | None:
    if values is None or not len(values):
        return None
    low, middle, high = (
        float(v) for v in np.quantile(np.asarray(values, dtype=np.float64), [0.05, 0.5, 0.95])
    )
    if share:
        return Cell(percent(middle), f"{percent(low)} to {percent(high)}")
    return Cell(f"{middle:,.0f}", f"{low:,.0f} to {high:,.0f}")


def _maps_section(content: ReportContent) -> dict[str, Any] | None:
    arms = [arm for arm in content.arms if arm.coordinates is not None and len(arm.coordinates)]
    groups = [
        ("By dataset", "dataset", "Well-integrated datasets overlap: no colour keeps to itself.", False),
        ("By cell label", "label", "Cells of one type lie together, whatever their dataset.", False),
        (
            "By cluster",
            "cluster",
            "Found from the embedding alone; numbers of different arms are unrelated.",
            True,
        ),
    ]
    views = []
    for title, key, hint, in_place in groups:
        coloured = [arm for arm in arms if getattr(arm, key) is not None]
        names = ordered(n for arm in coloured for n in category_names(getattr(arm, key)))
        if not coloured or (key == "dataset" and len(names) < 2) or set(names) <= {MISSING_NAME}:
            continue
        colours = colour_map(names)
        pictures = [
            Picture(
                _map_panel(arm, key, colours, in_place),
                f"Map of the cells by {arm_title(arm.name)}, coloured {title.lower()}",
                arm_title(arm.name),
            )
            for arm in coloured
        ]
        legend = [] if in_place else list(colours.items())
        views.append({"title": title, "hint": hint, "pictures": pictures, "legend": legend})
    if not views:
        return None
    return {
        "id": "maps",
        "title": "Maps of the cells",
        "kind": "maps",
        "views": views,
        "arms": [(arm_title(a.name), ARMS[a.name][1]) for a in arms if a.name in ARMS],
    }


def _map_panel(arm: ArmResult, key: str, colours: Mapping[str, str], in_place: bool) -> bytes:
    assert arm.coordinates is not None
    return plots.umap_panel(arm.coordinates, getattr(arm, key), colours, named_in_place=in_place)


def _comparison_section(content: ReportContent) -> dict[str, Any] | None:
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
    means = _mean_scores(comparison)
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


def _explained_section(content: ReportContent) -> dict[str, Any] | None:
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


def _denoising_section(content: ReportContent) -> dict[str, Any] | None:
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


def _training_section(content: ReportContent) -> dict[str, Any] | None:
    pictures = []
    losses = {c.name: c.series for c in content.curves if c.kind == "loss" and _any_values(c.series)}
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


def _any_values(series: Mapping[str, Values]) -> bool:
    return any(len(values) for values in series.values())


def _clusters_section(content: ReportContent) -> dict[str, Any] | None:
    arm = _main_arm(content)
    if arm is None or arm.cluster is None or not len(arm.cluster):
        return None
    pictures = []
    if arm.label is not None and set(category_names(arm.label)) - {MISSING_NAME}:
        pictures.append(
            Picture(
                plots.cluster_label_heatmap(arm.cluster, arm.label),
                "Heat map of cell labels by cluster",
                "Per cent of each cluster's cells that carry each label.",
            )
        )
    return {
        "id": "clusters",
        "title": "Clusters",
        "kind": "clusters",
        "arm": arm_title(arm.name),
        "table": _cluster_table(arm),
        "pictures": pictures,
    }


def _cluster_table(arm: ArmResult) -> Table:
    assert arm.cluster is not None
    clusters = category_names(arm.cluster)
    names = ordered(clusters)
    size = {name: clusters.count(name) for name in names}
    columns, cells = ["Cells"], {n: [Cell(number(size[n]), percent(size[n] / len(clusters)))] for n in names}
    for title, values in (("Most frequent label", arm.label), ("", arm.dataset)):
        if values is None:
            continue
        rows, others, table = plots.cross_table(clusters, values)
        counts = dict(zip(rows, table, strict=True))
        if title and set(others) - {MISSING_NAME}:
            columns.append(title)
            for n in names:
                top = int(counts[n].argmax())
                cells[n].append(Cell(others[top], percent(counts[n][top] / size[n], 0)))
        elif not title and len(others) > 1:
            columns += others
            for n in names:
                cells[n] += [Cell(number(int(c)), percent(c / size[n], 0)) for c in counts[n]]
    return Table(columns, [(name, cells[name]) for name in names], corner="Cluster")


def _markers_section(content: ReportContent) -> dict[str, Any] | None:
    markers = {cluster: genes for cluster, genes in content.markers.items() if genes}
    if not markers:
        return None
    return {
        "id": "markers",
        "title": "Marker genes",
        "kind": "markers",
        "arm": arm_title(content.markers_arm) if content.markers_arm else "",
        "clusters": [(cluster, markers[cluster]) for cluster in ordered(markers)],
    }


def _factors_section(content: ReportContent) -> dict[str, Any] | None:
    tables = []
    for arm in content.arms:
        if not arm.factors:
            continue
        datasets = list(dict.fromkeys(d for f in arm.factors for d in f.specific))
        columns = (["Shared by all datasets"] if any(f.shared for f in arm.factors) else []) + datasets
        rows = []
        for factor in arm.factors:
            cells = [Cell(", ".join(factor.shared))] if columns[:1] == ["Shared by all datasets"] else []
            cells += [Cell(", ".join(factor.specific.get(d, ()))) for d in datasets]
            rows.append((factor.name, cells))
        tables.append((arm_title(arm.name), Table(columns, rows, corner="Factor", wordy=True)))
    if not tables:
        return None
    return {"id": "factors", "title": "Top genes of the factors", "kind": "factors", "tables": tables}


def _sweep_section(content: ReportContent) -> dict[str, Any] | None:
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


def _provenance_section(content: ReportContent) -> dict[str, Any] | None:
    provenance = content.provenance
    sources = [(d.name, d.source, d.sha256) for d in content.datasets if d.sha256 or d.source]
    if provenance is None and not sources:
        return None
    facts: list[tuple[str, str]] = []
    versions: list[tuple[str, str]] = []
    settings = ""
    if provenance is not None:
        facts = [(k, v if isinstance(v, str) else number(v)) for k, v in provenance.facts.items()]
        facts += [(f"seed: {k}", str(v)) for k, v in provenance.seeds.items()]
        versions = [(k, str(v)) for k, v in provenance.versions.items()]
        if provenance.settings:
            settings = json.dumps(provenance.settings, indent=2, default=str, ensure_ascii=False)
    return {
        "id": "provenance",
        "title": "How this was made",
        "kind": "provenance",
        "sources": sources,
        "facts": facts,
        "versions": versions,
        "settings": settings,
    }


_SECTIONS: tuple[Callable[[ReportContent], dict[str, Any] | None], ...] = (
    _headline_section,
    _data_section,
    _maps_section,
    _comparison_section,
    _explained_section,
    _denoising_section,
    _training_section,
    _clusters_section,
    _markers_section,
    _factors_section,
    _sweep_section,
    _provenance_section,
)

"""Sections on the clusters: against labels, their markers, the factors' genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neumf_assets.core.report import plots
from neumf_assets.core.report.content import ArmResult, ReportContent
from neumf_assets.core.report.html.parts import Cell, Picture, Table, main_arm
from neumf_assets.core.report.palette import MISSING_NAME, category_names, ordered
from neumf_assets.core.report.wording import arm_title, number, percent

if TYPE_CHECKING:
    import pandas as pd


def clusters_section(content: ReportContent) -> dict[str, Any] | None:
    """What the clusters are: against the labels, how large, in which datasets."""
    arm = main_arm(content)
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
        "table": _cluster_table(arm, content.suggested if arm.name == content.markers_arm else {}),
        "pictures": pictures,
    }


def _cluster_table(arm: ArmResult, suggested: Mapping[str, str]) -> Table:
    assert arm.cluster is not None
    clusters = category_names(arm.cluster)
    names = ordered(clusters)
    size = {name: clusters.count(name) for name in names}
    columns, cells = ["Cells"], {n: [Cell(number(size[n]), percent(size[n] / len(clusters)))] for n in names}
    if suggested:
        columns.append("Suggested name")
        for n in names:
            cells[n].append(Cell(suggested.get(n) or "–"))
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


def markers_section(content: ReportContent) -> dict[str, Any] | None:
    """The marker genes of the clusters."""
    groups = []
    for title, found, dots in (
        ("Cluster", content.markers, content.marker_dots),
        ("Label", content.label_markers, content.label_dots),
    ):
        markers = {name: genes for name, genes in found.items() if genes}
        if markers:
            groups.append(
                {
                    "title": title,
                    "picture": _dots(dots, title) if dots is not None and len(dots) else None,
                    "clusters": [(name, markers[name]) for name in ordered(markers)],
                }
            )
    if not groups:
        return None
    return {
        "id": "markers",
        "title": "Marker genes",
        "kind": "markers",
        "arm": arm_title(content.markers_arm) if content.markers_arm else "",
        "groups": groups,
    }


def _dots(dots: pd.DataFrame, title: str) -> Picture:
    return Picture(
        plots.dot_plot(dots, ordered(dots["cluster"])),
        f"Dot plot of marker genes by {title.lower()}",
        f"The first markers of each {title.lower()}, in all of them.",
    )


def factors_section(content: ReportContent) -> dict[str, Any] | None:
    """The top genes of each factor."""
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

"""Section on the data: what was read, and what quality control kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neumf_assets.core.report import plots
from neumf_assets.core.report.content import DatasetSummary, ReportContent
from neumf_assets.core.report.html.parts import Cell, Picture, Table
from neumf_assets.core.report.plots.basis import Values
from neumf_assets.core.report.wording import number, percent

_MOST_PICTURES = 12
"""Datasets that have pictures of their own; the table has all."""


def data_section(content: ReportContent) -> dict[str, Any] | None:
    """What was read, and what quality control kept of it."""
    if not content.datasets:
        return None
    known = {
        d.name: plots.CellQC(d.total_counts, d.genes_per_cell, d.mito_share)
        for d in content.datasets
        if d.total_counts is not None and d.genes_per_cell is not None
    }
    pictures = []
    if known:
        pictures.append(
            Picture(
                plots.qc_histograms(known, content.qc_thresholds),
                "Histograms over cells of counts, genes and mitochondrial share, one colour per dataset",
                "Distributions over the cells. Dashed: the bounds of quality control.",
            )
        )
    if len(known) > 1:
        pictures.append(
            Picture(
                plots.quality_violins(known),
                "Violins of counts, genes and mitochondrial share of the cells of each dataset",
                "The same, dataset beside dataset; the line is the median.",
            )
        )
    shown = content.datasets[:_MOST_PICTURES]
    pictures += [picture for d in shown for picture in _dataset_pictures(d)]
    return {
        "id": "data",
        "title": "Data and quality control",
        "kind": "data",
        "table": _dataset_table(content.datasets),
        "pictures": pictures,
    }


def _dataset_pictures(dataset: DatasetSummary) -> list[Picture]:
    """The knee of a raw matrix, and what is marked among the cells."""
    found = []
    if dataset.droplets is not None:
        drawn = dataset.droplets
        found.append(
            Picture(
                plots.knee_plot(drawn.totals, drawn.cells, drawn.knee, drawn.lower, dataset.name),
                f"Counts of all barcodes of {dataset.name} by rank",
                f"{dataset.name}: which barcodes of the raw matrix are cells. Dark: all of them, light: some.",
            )
        )
    figures = (dataset.total_counts, dataset.genes_per_cell, dataset.mito_share)
    total, genes, mito = figures
    if (
        total is not None
        and genes is not None
        and (dataset.outlier is not None or dataset.doublet is not None)
    ):
        found.append(
            Picture(
                plots.quality_scatter(total, genes, mito, dataset.outlier, dataset.doublet),
                f"Counts against genes of the cells of {dataset.name}",
                f"{dataset.name}: the cells that are marked as outliers or doublets.",
            )
        )
    return found


def _dataset_table(datasets: Sequence[DatasetSummary]) -> Table:
    columns: list[tuple[str, Callable[[DatasetSummary], Cell | None]]] = [
        ("Cells", lambda d: _kept(d.cells, d.cells_read)),
        ("Genes", lambda d: _kept(d.genes, d.genes_read)),
        ("Zeros", lambda d: None if d.zero_fraction is None else Cell(percent(d.zero_fraction))),
        ("Counts per cell", lambda d: _median(d.total_counts)),
        ("Genes per cell", lambda d: _median(d.genes_per_cell)),
        ("Mitochondrial", lambda d: _median(d.mito_share, share=True)),
        ("Outliers", lambda d: _marked(d.outlier)),
        ("Doublets", lambda d: _marked(d.doublet)),
        ("Ambient RNA", lambda d: None if d.ambient_share is None else Cell(percent(d.ambient_share))),
        ("Species", lambda d: Cell(d.species) if d.species else None),
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


def _marked(cells: np.ndarray | None) -> Cell | None:
    if cells is None:
        return None
    return Cell(number(int(cells.sum())), percent(float(cells.mean())) if len(cells) else "")


def _median(values: Values | None, share: bool = False) -> Cell | None:
    if values is None or not len(values):
        return None
    low, middle, high = (
        float(v) for v in np.quantile(np.asarray(values, dtype=np.float64), [0.05, 0.5, 0.95])
    )
    if share:
        return Cell(percent(middle), f"{percent(low)} to {percent(high)}")
    return Cell(f"{middle:,.0f}", f"{low:,.0f} to {high:,.0f}")

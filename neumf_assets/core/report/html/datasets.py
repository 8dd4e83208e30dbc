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


def data_section(content: ReportContent) -> dict[str, Any] | None:
    """What was read, and what quality control kept of it."""
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

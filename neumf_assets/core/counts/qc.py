"""Quality control: which cells and genes are kept, and why the others are not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.counts.quality.figures import CellFigures, cell_figures
from neumf_assets.core.counts.settings import QCSettings
from neumf_assets.core.counts.store import FILE, CountsWriter
from neumf_assets.core.counts.stored import BLOCK_CELLS, StoredCounts
from neumf_assets.core.errors import BadInput

_GIANT = 0.5
OUR_COLUMNS = "qc_columns"
"""Where counts keep the names of the columns on quality that are not the user's."""
_logger = logging.getLogger(__name__)
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class QCReport:
    """What quality control found and did.

    Attributes
    ----------
    cells_before, cells_after, genes_before, genes_after
        Numbers of cells and genes.
    zero_share_before, zero_share_after
        Share of entries that are zero.
    cells_dropped
        Number of cells by reason: ``empty``, ``few_genes``, ``mitochondrial``, and where they apply ``background``
        (barcodes that are no cells), ``outlier`` and ``doublet``; each counts once, under one reason.
    genes_dropped
        Number of genes by reason: ``empty`` (in no cell of the file), ``few_cells`` (in too few kept cells).
    totals, genes_seen, mito_share
        For every cell before filtering: total counts, number of genes seen, share of mitochondrial counts
        (0 for empty cells).
    kept
        Which of these cells were kept.
    mito_genes
        How many genes were taken as mitochondrial.
    figures
        More figures of every cell before filtering.
    """

    cells_before: int
    cells_after: int
    genes_before: int
    genes_after: int
    zero_share_before: float
    zero_share_after: float
    cells_dropped: dict[str, int]
    genes_dropped: dict[str, int]
    totals: NDArray[np.float64]
    genes_seen: NDArray[np.int64]
    mito_share: NDArray[np.float64]
    kept: Mask
    mito_genes: int
    figures: CellFigures


def filter_counts(adata: ad.AnnData, settings: QCSettings | None = None) -> tuple[ad.AnnData, QCReport]:
    """Drop cells and genes that quality control refuses.

    Both limits hold in the result: dropping cells can leave a gene in too few of them and the other way
    round, so the filters are repeated until nothing changes. The mitochondrial share is that of the whole
    cell.

    Parameters
    ----------
    adata
        Counts as `read_counts` gives them; not changed.
    settings
        The limits. Default: `QCSettings()`.

    Returns
    -------
    tuple
        The kept part, a copy, and the report.

    Raises
    ------
    BadInput
        When no cell or no gene remains.
    """
    verdict = judge(adata, settings or QCSettings())
    kept = adata[verdict.cells, verdict.genes].copy()
    return kept, verdict.report


@dataclass(frozen=True)
class Verdict:
    """Which cells and genes are kept, what they hold, and why the others are not."""

    cells: Mask
    genes: Mask
    nonzero: int
    total_counts: float
    report: QCReport

    def write(self, counts: StoredCounts, folder: str | Path, columns: pd.DataFrame | None = None) -> None:
        """Write the kept part of counts on disk, a block of cells at a time.

        ``columns`` are added to what is known of the cells (those before filtering, in order); a column that has
        a name of the user's gets a prefix.
        """
        added = _beside(counts.obs, columns)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with CountsWriter(folder / FILE) as writer:
            for rows, X in blocks_of(counts):
                kept = self.cells[rows]
                obs = counts.obs.iloc[rows][kept]
                if added is not None:
                    own = added.iloc[rows][kept]
                    obs = obs.assign(**{name: own[name].array for name in added.columns})
                uns = {**counts.uns, OUR_COLUMNS: [] if added is None else list(added.columns)}
                part = ad.AnnData(X[kept][:, self.genes], obs=obs, var=counts.var[self.genes], uns=uns)
                writer.add(part)


def _beside(obs: pd.DataFrame, columns: pd.DataFrame | None) -> pd.DataFrame | None:
    """Columns of ours, with a prefix where the user has one of that name."""
    if columns is None:
        return None
    return columns.rename(columns={name: f"neumf_{name}" for name in columns.columns if name in obs.columns})


def figures_of(counts: ad.AnnData | StoredCounts, settings: QCSettings) -> CellFigures:
    """Figures of all cells; of counts on disk a block of cells is read at a time."""
    return cell_figures(lambda: blocks_of(counts), counts.shape, counts.var, settings.mito_prefixes)


def judge(
    counts: ad.AnnData | StoredCounts,
    settings: QCSettings,
    figures: CellFigures | None = None,
    removed: Mapping[str, Mask] | None = None,
) -> Verdict:
    """Decide as :func:`filter_counts` does; of counts on disk a block of cells is read at a time.

    Parameters
    ----------
    counts, settings
        The counts and the limits.
    figures
        What :func:`figures_of` gives, where it is known already.
    removed
        Cells that go for other reasons, by reason.

    Raises
    ------
    BadInput
        When no cell or no gene remains.
    """
    known = figures or figures_of(counts, settings)
    totals, genes_seen, mito = known.totals, known.genes_seen, known.mito_share
    seen_at_all, in_any = genes_seen > 0, known.in_cells > 0
    healthy = mito <= settings.max_mito
    there = np.ones(counts.shape[0], bool)
    others: dict[str, int] = {}
    for reason, gone in (removed or {}).items():
        others[reason] = int((gone & there & seen_at_all).sum())
        there &= ~gone
    cells, genes = _fixpoint(counts, seen_at_all & healthy & there, in_any, settings)
    cell_reasons = {
        "empty": int((~seen_at_all).sum()),
        "few_genes": int((seen_at_all & ~cells & healthy & there).sum()),
        "mitochondrial": int((seen_at_all & ~healthy & there).sum()),
        **others,
    }
    gene_reasons = {"empty": int((~in_any).sum()), "few_cells": int((in_any & ~genes).sum())}
    if not cells.any() or not genes.any():
        raise _nothing_left(counts, settings, cell_reasons, gene_reasons)
    nonzero, total = 0, 0.0
    for rows, X in blocks_of(counts):
        kept = X[cells[rows]]
        inside = genes[kept.indices]
        nonzero += int(inside.sum())
        total += float(kept.data[inside].sum(dtype=np.float64))
    shape = (int(cells.sum()), int(genes.sum()))
    _say_giants(counts, totals)
    report = QCReport(
        cells_before=counts.shape[0],
        cells_after=shape[0],
        genes_before=counts.shape[1],
        genes_after=shape[1],
        zero_share_before=1.0 - int(genes_seen.sum()) / (counts.shape[0] * counts.shape[1]),
        zero_share_after=1.0 - nonzero / (shape[0] * shape[1]),
        cells_dropped=cell_reasons,
        genes_dropped=gene_reasons,
        totals=totals,
        genes_seen=genes_seen,
        mito_share=mito,
        kept=cells,
        mito_genes=known.known["mito"],
        figures=known,
    )
    return Verdict(cells, genes, nonzero, total, report)


def check_size(counts: ad.AnnData | StoredCounts, cells: int, settings: QCSettings) -> None:
    """Refuse a dataset of which too few cells are left for a study.

    Raises
    ------
    BadInput
        Then.
    """
    if cells < settings.fewest_cells:
        raise BadInput(
            _source(counts),
            "",
            f"holds {cells} cells that pass quality control (of {counts.shape[0]}), fewer than "
            f"{settings.fewest_cells}",
            "Join it with another dataset of its kind, or lower qc.fewest_cells",
        )


def _say_giants(counts: ad.AnnData | StoredCounts, totals: NDArray[np.float64]) -> None:
    """Warn of a cell that holds most of a dataset's counts: whatever is scaled by totals follows it alone."""
    whole = totals.sum()
    if len(totals) > 1 and totals.max() > _GIANT * whole:
        at = int(totals.argmax())
        _logger.warning(
            "%s: one cell holds %.0f%% of all counts, an outlier: %r with %d of %d. Take it out if it is no cell",
            _source(counts),
            100 * totals[at] / whole,
            str(counts.obs_names[at]),
            totals[at],
            whole,
        )


def _source(counts: ad.AnnData | StoredCounts) -> str:
    return str(counts.uns.get("provenance", {}).get("source", "counts"))


def blocks_of(counts: ad.AnnData | StoredCounts) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """The cells in blocks: which, and their rows."""
    for start in range(0, counts.shape[0], BLOCK_CELLS):
        rows = slice(start, min(start + BLOCK_CELLS, counts.shape[0]))
        yield rows, counts.rows(rows.start, rows.stop) if isinstance(counts, StoredCounts) else counts.X[rows]


def _fixpoint(
    counts: ad.AnnData | StoredCounts, cells: Mask, genes: Mask, settings: QCSettings
) -> tuple[Mask, Mask]:
    """Repeat both filters until the kept part meets both limits."""
    while True:
        in_cells = np.zeros(counts.shape[1], np.int64)
        for rows, X in blocks_of(counts):
            in_cells += np.bincount(X[cells[rows]].indices, minlength=counts.shape[1])
        kept_genes = genes & (in_cells >= settings.min_cells)
        kept_cells = cells.copy()
        for rows, X in blocks_of(counts):
            seen = np.concatenate([[0], np.cumsum(kept_genes[X.indices])])
            kept_cells[rows] &= seen[X.indptr[1:]] - seen[X.indptr[:-1]] >= settings.min_genes
        if np.array_equal(kept_genes, genes) and np.array_equal(kept_cells, cells):
            return cells, genes
        cells, genes = kept_cells, kept_genes


def _nothing_left(
    adata: ad.AnnData | StoredCounts, settings: QCSettings, cells: dict[str, int], genes: dict[str, int]
) -> BadInput:
    return BadInput(
        _source(adata),
        "",
        f"nothing is left of {adata.shape[0]} cells and {adata.shape[1]} genes: {cells['empty']} cells are empty, "
        f"{cells['few_genes']} have fewer than {settings.min_genes} genes, {cells['mitochondrial']} hold "
        f"more than {settings.max_mito:.0%} mitochondrial counts; {genes['few_cells']} genes are in fewer "
        f"than {settings.min_cells} kept cells",
        "Lower min_genes and min_cells or raise max_mito, or check that rows and columns are read the right "
        "way round (orientation)",
    )

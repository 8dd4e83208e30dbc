"""Quality control: which cells and genes are kept, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.counts.settings import QCSettings
from neumf_assets.core.errors import BadInput

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
        Number of cells by reason: ``empty``, ``few_genes``, ``mitochondrial``; each cell counts once, under
        the first reason that applies.
    genes_dropped
        Number of genes by reason: ``empty`` (in no cell of the file), ``few_cells`` (in too few kept cells).
    totals, genes_seen, mito_share
        For every cell before filtering: total counts, number of genes seen, share of mitochondrial counts
        (0 for empty cells).
    kept
        Which of these cells were kept.
    mito_genes
        How many genes were taken as mitochondrial.
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
    settings = settings or QCSettings()
    X = adata.X
    totals, genes_seen, mito, mito_genes = _cell_figures(adata, settings)
    seen_at_all = np.diff(X.indptr) > 0
    in_cells = np.bincount(X.indices, minlength=adata.n_vars) > 0
    healthy = mito <= settings.max_mito
    cells, genes = _fixpoint(X, seen_at_all & healthy, in_cells, settings)
    cell_reasons = {
        "empty": int((~seen_at_all).sum()),
        "few_genes": int((seen_at_all & ~cells & healthy).sum()),
        "mitochondrial": int((seen_at_all & ~healthy).sum()),
    }
    gene_reasons = {"empty": int((~in_cells).sum()), "few_cells": int((in_cells & ~genes).sum())}
    if not cells.any() or not genes.any():
        raise _nothing_left(adata, settings, cell_reasons, gene_reasons)
    kept = adata[cells, genes].copy()
    report = QCReport(
        cells_before=adata.n_obs,
        cells_after=kept.n_obs,
        genes_before=adata.n_vars,
        genes_after=kept.n_vars,
        zero_share_before=_zero_share(X),
        zero_share_after=_zero_share(kept.X),
        cells_dropped=cell_reasons,
        genes_dropped=gene_reasons,
        totals=totals,
        genes_seen=genes_seen,
        mito_share=mito,
        kept=cells,
        mito_genes=mito_genes,
    )
    return kept, report


def _cell_figures(
    adata: ad.AnnData, settings: QCSettings
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], int]:
    X = adata.X
    totals = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
    names = pl.Series(adata.var["original_name"].to_numpy(dtype=object), dtype=pl.String)
    mito_gene = np.zeros(adata.n_vars, dtype=bool)
    for prefix in settings.mito_prefixes:
        mito_gene |= names.str.starts_with(prefix).to_numpy()
    mito_totals = X @ mito_gene.astype(np.float64)
    share = np.divide(mito_totals, totals, out=np.zeros_like(totals), where=totals > 0)
    return totals, np.diff(X.indptr).astype(np.int64), share, int(mito_gene.sum())


def _fixpoint(X: sparse.csr_matrix, cells: Mask, genes: Mask, settings: QCSettings) -> tuple[Mask, Mask]:
    """Repeat both filters until the kept part meets both limits."""
    pattern = sparse.csr_matrix((np.ones(X.nnz, np.int32), X.indices, X.indptr), shape=X.shape)
    while True:
        in_cells = pattern.T @ cells.astype(np.int32)
        kept_genes = genes & (in_cells >= settings.min_cells)
        kept_cells = cells & (pattern @ kept_genes.astype(np.int32) >= settings.min_genes)
        if np.array_equal(kept_genes, genes) and np.array_equal(kept_cells, cells):
            return cells, genes
        cells, genes = kept_cells, kept_genes


def _zero_share(X: sparse.csr_matrix) -> float:
    return 1.0 - X.nnz / (X.shape[0] * X.shape[1])


def _nothing_left(
    adata: ad.AnnData, settings: QCSettings, cells: dict[str, int], genes: dict[str, int]
) -> BadInput:
    provenance = adata.uns.get("provenance", {})
    return BadInput(
        str(provenance.get("source", "counts")),
        "",
        f"nothing is left of {adata.n_obs} cells and {adata.n_vars} genes: {cells['empty']} cells are empty, "
        f"{cells['few_genes']} have fewer than {settings.min_genes} genes, {cells['mitochondrial']} hold "
        f"more than {settings.max_mito:.0%} mitochondrial counts; {genes['few_cells']} genes are in fewer "
        f"than {settings.min_cells} kept cells",
        "Lower min_genes and min_cells or raise max_mito, or check that rows and columns are read the right "
        "way round (orientation)",
    )

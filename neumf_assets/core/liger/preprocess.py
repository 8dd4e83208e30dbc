"""From counts to what iNMF factorises: divide by the cell's total, select genes, scale without centring.

As in rliger (Welch et al. 2019; ``normalize``, ``selectGenes``, ``scaleNotCenter``), without a dense copy and
without a normalised copy: each step is a factor per cell or per gene that is applied once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.inmf.matrices import DenseMatrix, check_values
from neumf_assets.core.liger.settings import LigerSettings


@dataclass(frozen=True)
class GeneStatistics:
    """What selection and scaling need to know of one dataset, after division by the cells' totals.

    Parameters
    ----------
    totals
        Sum of each cell.
    mean, square
        Mean and mean square of each gene's normalised expression.
    seen
        Number of cells in which each gene is not zero.
    """

    totals: NDArray[np.float64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    seen: NDArray[np.int64]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.totals.size)

    @property
    def cell_factors(self) -> NDArray[np.float64]:
        """One over the cell's total; 0 for a cell without counts."""
        return np.divide(1.0, self.totals, out=np.zeros_like(self.totals), where=self.totals > 0)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Unbiased variance of each gene."""
        return np.maximum(self.square - self.mean**2, 0) * self.n_cells / max(self.n_cells - 1, 1)

    @property
    def rms(self) -> NDArray[np.float64]:
        """Root mean square of each gene (over n − 1 cells, as in rliger)."""
        return np.sqrt(self.square * self.n_cells / max(self.n_cells - 1, 1))


def gene_statistics(matrix: Any, block_cells: int = 1000) -> GeneStatistics:
    """Compute totals, means and mean squares in one pass over the cells.

    Parameters
    ----------
    matrix
        Cells × genes, non-negative: CSR, an array, a memory map or a Zarr array; ``block_cells`` rows of it
        are looked at at a time.

    Raises
    ------
    NeumfError
        Negative or non-finite values.
    """
    n_cells, n_genes = matrix.shape
    totals, total, squares = np.zeros(n_cells), np.zeros(n_genes), np.zeros(n_genes)
    seen = np.zeros(n_genes, np.int64)
    for rows, block in _row_blocks(matrix, block_cells):
        if sp.issparse(block):
            check_values(block.data)
            totals[rows] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
            values = block.data * np.repeat(inverse(totals[rows]), np.diff(block.indptr))
            total += np.bincount(block.indices, values, minlength=n_genes)
            squares += np.bincount(block.indices, values**2, minlength=n_genes)
            seen += np.bincount(block.indices, minlength=n_genes)
        else:
            check_values(block)
            totals[rows] = block.sum(axis=1, dtype=np.float64)
            values = block * inverse(totals[rows])[:, None]
            total += values.sum(axis=0)
            squares += np.einsum("cg,cg->g", values, values)
            seen += np.count_nonzero(block, axis=0)
    return GeneStatistics(totals, total / max(n_cells, 1), squares / max(n_cells, 1), seen)


def excess_variance(
    statistics: GeneStatistics, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Compare each gene's variance with what Poisson noise alone would give.

    Under Poisson noise the variance of the normalised expression is ``mean × c`` with ``c`` the mean of one
    over the cells' totals (rliger's selectGenes).

    Returns
    -------
    log10 of variance over Poisson expectation (−inf for a gene that is not seen), and whether variance/c
    exceeds the upper confidence bound of the mean (level ``confidence`` over the number of genes).
    """
    from scipy.stats import norm

    seen = statistics.totals > 0
    noise = float(np.mean(1 / statistics.totals[seen])) if seen.any() else 0.0
    expected = statistics.mean * noise
    variance, n_genes = statistics.variance, max(statistics.mean.size, 1)
    spread = norm.ppf(1 - confidence / n_genes / 2) * np.sqrt(expected / max(statistics.n_cells, 1))
    positive = (expected > 0) & (variance > 0)
    ratio = np.full(variance.shape, -np.inf)
    ratio[positive] = np.log10(variance[positive] / expected[positive])
    return ratio, positive & (variance > noise * (statistics.mean + spread))


def select_genes(statistics: Sequence[GeneStatistics], settings: LigerSettings) -> NDArray[np.intp]:
    """Return the positions of the variable genes, ascending.

    With ``n_genes`` the genes with the largest excess variance in any dataset, those that pass the confidence
    bound first; otherwise the union over datasets of the genes that pass it and exceed ``gene_threshold``.

    Raises
    ------
    NeumfError
        No gene passes the threshold.
    """
    ratios, sure = zip(*(excess_variance(one, settings.gene_confidence) for one in statistics), strict=True)
    if settings.n_genes is not None:
        passing = np.where(sure, ratios, -np.inf).max(axis=0)
        order = np.lexsort((-np.max(ratios, axis=0), -passing))
        return np.sort(order[: settings.n_genes])
    chosen = np.flatnonzero((np.array(sure) & (np.array(ratios) > settings.gene_threshold)).any(axis=0))
    if chosen.size == 0:
        raise NeumfError(
            f"No gene varies more than gene_threshold = {settings.gene_threshold} above Poisson noise; "
            "lower it, or set n_genes."
        )
    return chosen


def scale(matrix: sp.csr_matrix, statistics: GeneStatistics, genes: NDArray[np.intp]) -> sp.csr_matrix:
    """Return the selected genes, normalised and divided by their root mean square; CSR, float32.

    Parameters
    ----------
    matrix
        Counts, cells × all genes, CSR.
    statistics
        Of the same matrix.
    genes
        Positions of the genes to keep.
    """
    return scaled(
        sp.csr_matrix(matrix)[:, genes],
        statistics.cell_factors.astype(np.float32),
        inverse(statistics.rms[genes]).astype(np.float32),
    )


def scaled(
    counts: sp.csr_matrix, cell_factors: NDArray[np.float32], gene_factors: NDArray[np.float32]
) -> sp.csr_matrix:
    """Return counts times a factor for each cell and one for each gene; CSR, float32."""
    values = counts.data.astype(np.float32)
    values *= np.repeat(cell_factors, np.diff(counts.indptr))
    values *= gene_factors[counts.indices]
    return sp.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)


def scale_dense(
    matrix: Any,
    statistics: GeneStatistics,
    genes: NDArray[np.intp],
    *,
    block_cells: int = 5000,
    device: str = "cpu",
) -> DenseMatrix:
    """Describe the scaled form of a dense matrix without reading it; blocks are scaled when used."""
    per_gene = inverse(statistics.rms[genes])
    n_cells = statistics.n_cells
    return DenseMatrix(
        matrix,
        genes,
        statistics.cell_factors.astype(np.float32),
        per_gene.astype(np.float32),
        float(n_cells * (statistics.mean[genes] * per_gene).sum()),
        float(n_cells * (statistics.square[genes] * per_gene**2).sum()),
        block_cells=block_cells,
        device=device,
    )


def _row_blocks(matrix: Any, block_cells: int) -> Iterator[tuple[slice, Any]]:
    for start in range(0, matrix.shape[0], block_cells):
        rows = slice(start, min(start + block_cells, matrix.shape[0]))
        block = matrix[rows]
        yield rows, sp.csr_matrix(block) if sp.issparse(block) else np.asarray(block)


def inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one over each value; 0 for 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)

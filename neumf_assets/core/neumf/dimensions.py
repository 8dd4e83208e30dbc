"""How many dimensions of an embedding the counts can support."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds

FEWEST, MOST = 4, 50
MOST_TOGETHER = 20
"""Most dimensions of an integrative model: each one more is noise in the distances between cells."""
MIN_CELLS = (
    10  # where a dataset saw a gene in fewer, its residuals are set to 0: they are far from any noise's
)
MARGIN = 1.02  # the largest singular value of finite noise is a per cent or so around the edge


def significant_axes(counts: sp.csr_matrix, dataset: NDArray[np.intp], most: int = MOST) -> int:
    """Count the axes along which the counts vary by more than their own noise.

    The Pearson residuals of counts that only a cell's total and a gene's mean explain are noise of one
    variance; the singular values of such noise end at ``sd (sqrt(cells) + sqrt(genes))`` (Marchenko and Pastur
    1967; for scaled Poisson counts Landa, Zhang and Kluger 2022, SIAM J Math Data Sci 4:1388). What lies above
    is structure.

    Parameters
    ----------
    counts
        Cells x genes.
    dataset
        Dataset index of each cell; residuals are taken within each, so that a difference between datasets is
        no axis.
    most
        Count up to here; more need not be computed.

    Returns
    -------
    From 0 to ``most``.
    """
    n_cells, n_genes = counts.shape
    found = min(most, min(n_cells, n_genes) - 1)
    if found < 1:
        return 0
    residuals, variance = _pearson_residuals(counts, dataset)
    start = np.random.default_rng(0).standard_normal(min(n_cells, n_genes))
    values = svds(residuals, k=found, v0=start, return_singular_vectors=False)
    edge = np.sqrt(variance) * (np.sqrt(n_cells) + np.sqrt(n_genes))
    return int((values > MARGIN * edge).sum())


def _pearson_residuals(counts: sp.csr_matrix, dataset: NDArray[np.intp]) -> tuple[LinearOperator, float]:
    """Return ``(y - mu) / sqrt(mu)``, never dense, and their variance; ``mu`` has rank 1 per dataset."""
    scaled, means = [], []
    for d in np.unique(dataset):
        part = sp.csr_matrix(counts[dataset == d], dtype=np.float64)
        root = np.sqrt(part.sum())
        cell = np.sqrt(np.asarray(part.sum(axis=1)).ravel() / max(root, 1))
        gene = np.sqrt(np.asarray(part.sum(axis=0)).ravel() / max(root, 1))
        gene[part.getnnz(axis=0) < MIN_CELLS] = 0
        scaled.append(sp.diags_array(_inverse(cell)) @ part @ sp.diags_array(_inverse(gene)))
        means.append((cell, gene))
    y = sp.csr_matrix(sp.vstack(scaled))
    mean_cell = sp.csr_matrix(sp.block_diag([cell[:, None] for cell, _ in means]))
    mean_gene = np.array([gene for _, gene in means])

    def times(right: NDArray[np.float64]) -> NDArray[np.float64]:
        return y @ right - mean_cell @ (mean_gene @ right)

    def times_transposed(left: NDArray[np.float64]) -> NDArray[np.float64]:
        return y.T @ left - mean_gene.T @ (mean_cell.T @ left)

    mixed = float(((y @ mean_gene.T) * mean_cell.toarray()).sum())
    own = sum(float(cell @ cell) * float(gene @ gene) for cell, gene in means)
    squares = float(y.multiply(y).sum()) - 2 * mixed + own
    entries = sum(cell.size * np.count_nonzero(gene) for cell, gene in means)
    operator = LinearOperator(
        y.shape,
        matvec=lambda v: times(v.ravel()),
        rmatvec=lambda v: times_transposed(v.ravel()),
        matmat=times,
        rmatmat=times_transposed,
        dtype=np.float64,
    )
    return operator, squares / max(entries, 1)


def _inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)

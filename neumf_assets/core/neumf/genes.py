"""Which genes a model sees: the most overdispersed ones, ranked alike in every dataset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

MIN_CELLS = 10


def median_total(counts: csr_matrix) -> float:
    """Return the median of the cells' totals, over cells with any counts (1 without such cells)."""
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return float(np.median(totals[totals > 0])) if (totals > 0).any() else 1.0


def size_factors(counts: csr_matrix, median: float | None = None) -> NDArray[np.float32]:
    """Return each cell's total over the median total.

    Parameters
    ----------
    counts
        Cells x genes; several datasets together, so that their size factors stay comparable.
    median
        The total at which the factor is 1; that of these cells by default.

    Returns
    -------
    Array of length ``n_cells``; a cell without counts gets the smallest positive factor.
    """
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    positive = totals > 0
    if not positive.any():
        return np.ones(counts.shape[0], np.float32)
    totals[~positive] = totals[positive].min()
    return (totals / (median or median_total(counts))).astype(np.float32)


def overdispersion(counts: csr_matrix) -> NDArray[np.float64]:
    """Return the variance over the mean of each gene's size-normalised counts.

    Genes seen in fewer than 10 cells get 0: a ratio from so few counts says nothing.

    Parameters
    ----------
    counts
        Cells x genes of one dataset.

    Returns
    -------
    Array of length ``n_genes``.
    """
    n_cells, n_genes = counts.shape
    factors = size_factors(counts).astype(np.float64)
    rows = np.repeat(np.arange(n_cells), np.diff(counts.indptr))
    values = counts.data / factors[rows]
    total = np.bincount(counts.indices, values, minlength=n_genes)
    squares = np.bincount(counts.indices, values**2, minlength=n_genes)
    seen = np.bincount(counts.indices[counts.data > 0], minlength=n_genes)
    mean = total / max(n_cells, 1)
    variance = squares / max(n_cells, 1) - mean**2
    ratio = np.divide(variance, mean, out=np.zeros(n_genes), where=mean > 0)
    return np.where(seen >= MIN_CELLS, ratio, 0.0)


def select_genes(counts: csr_matrix, dataset: NDArray[np.intp], n_genes: int | None) -> NDArray[np.intp]:
    """Return the positions of the genes to train on, in the order of the matrix.

    Parameters
    ----------
    counts
        Cells x genes.
    dataset
        Dataset index of each cell. The ratio of :func:`overdispersion` is computed within each dataset, so
        that a difference between datasets alone selects no gene, and averaged.
    n_genes
        Number of genes to keep; ``None`` or more than there are keeps all.
    """
    if n_genes is None or n_genes >= counts.shape[1]:
        return np.arange(counts.shape[1])
    score = np.mean([overdispersion(counts[dataset == d]) for d in np.unique(dataset)], axis=0)
    mean = np.asarray(counts.mean(axis=0)).ravel()
    order = np.lexsort((np.arange(score.size), -mean, -score))
    return np.sort(order[:n_genes])

"""Which genes a model sees: the most overdispersed ones, ranked alike in every dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, sparray, spmatrix

MIN_CELLS = 10
BLOCK_CELLS = 8192


class RowSource(Protocol):
    """Counts that are read some consecutive cells at a time, from memory or from disk."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells x genes."""

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return the cells from ``start`` to ``stop``."""


@dataclass(frozen=True)
class Part:
    """Some cells of other counts."""

    counts: csr_matrix | RowSource
    cells: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells x genes."""
        return self.cells.size, self.counts.shape[1]

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return the cells from ``start`` to ``stop``; those of counts on disk must follow each other."""
        cells = self.cells[start:stop]
        if isinstance(self.counts, spmatrix | sparray):
            return self.counts[cells]
        return self.counts.rows(int(cells[0]), int(cells[-1]) + 1)


def blocks(counts: csr_matrix | RowSource, cells: int = BLOCK_CELLS) -> Iterator[tuple[slice, csr_matrix]]:
    """Yield counts as (rows, block), so that sums over cells are the same wherever the counts lie."""
    for start in range(0, counts.shape[0], cells):
        rows = slice(start, min(start + cells, counts.shape[0]))
        if isinstance(counts, spmatrix | sparray):
            yield rows, counts if counts.shape[0] <= cells else counts[rows]
        else:
            yield rows, counts.rows(rows.start, rows.stop)


def cell_totals(counts: csr_matrix | RowSource) -> NDArray[np.float64]:
    """Return the sum of each cell."""
    totals = np.zeros(counts.shape[0])
    for rows, block in blocks(counts):
        totals[rows] = np.asarray(block.sum(axis=1), dtype=np.float64).ravel()
    return totals


def gene_totals(counts: csr_matrix | RowSource, *, observed: bool = False) -> NDArray[np.float64]:
    """Return the sum of each gene, or the number of cells in which it was ``observed``."""
    totals = np.zeros(counts.shape[1])
    for _, block in blocks(counts):
        totals += np.asarray((block > 0 if observed else block).sum(axis=0), dtype=np.float64).ravel()
    return totals


def median_of(totals: NDArray[np.float64]) -> float:
    """Return the median of the cells' totals, over cells with any counts (1 without such cells)."""
    return float(np.median(totals[totals > 0])) if (totals > 0).any() else 1.0


def factors_of(totals: NDArray[np.float64], median: float | None = None) -> NDArray[np.float32]:
    """Return the size factors of cells with these totals; see :func:`size_factors`."""
    positive = totals > 0
    if not positive.any():
        return np.ones(totals.size, np.float32)
    median = median or median_of(totals)
    return (np.where(positive, totals, totals[positive].min()) / median).astype(np.float32)


def median_total(counts: csr_matrix | RowSource) -> float:
    """Return the median of the cells' totals, over cells with any counts (1 without such cells)."""
    return median_of(cell_totals(counts))


def size_factors(counts: csr_matrix | RowSource, median: float | None = None) -> NDArray[np.float32]:
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
    return factors_of(cell_totals(counts), median)


def overdispersion(
    counts: csr_matrix | RowSource, totals: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the variance over the mean of each gene's size-normalised counts.

    Genes seen in fewer than 10 cells get 0: a ratio from so few counts says nothing.

    Parameters
    ----------
    counts
        Cells x genes of one dataset.
    totals
        Sums of the cells, where they are known.

    Returns
    -------
    Array of length ``n_genes``.
    """
    n_cells, n_genes = counts.shape
    factors = factors_of(cell_totals(counts) if totals is None else totals).astype(np.float64)
    total, squares, seen = np.zeros((3, n_genes))
    for rows, block in blocks(counts):
        values = block.data / np.repeat(factors[rows], np.diff(block.indptr))
        total += np.bincount(block.indices, values, minlength=n_genes)
        squares += np.bincount(block.indices, values**2, minlength=n_genes)
        seen += np.bincount(block.indices, block.data > 0, minlength=n_genes)
    mean = total / max(n_cells, 1)
    variance = squares / max(n_cells, 1) - mean**2
    ratio = np.divide(variance, mean, out=np.zeros(n_genes), where=mean > 0)
    return np.where(seen >= MIN_CELLS, ratio, 0.0)


def select_genes(
    counts: csr_matrix | RowSource,
    dataset: NDArray[np.intp],
    n_genes: int | None,
    totals: NDArray[np.float64] | None = None,
) -> NDArray[np.intp]:
    """Return the positions of the genes to train on, in the order of the matrix.

    Parameters
    ----------
    counts
        Cells x genes; on disk the cells of each dataset follow each other.
    dataset
        Dataset index of each cell. The ratio of :func:`overdispersion` is computed within each dataset, so
        that a difference between datasets alone selects no gene, and averaged.
    n_genes
        Number of genes to keep; ``None`` or more than there are keeps all.
    totals
        Sums of the cells, where they are known.
    """
    if n_genes is None or n_genes >= counts.shape[1]:
        return np.arange(counts.shape[1])
    totals = cell_totals(counts) if totals is None else totals
    score = np.mean([overdispersion(Part(counts, own), totals[own]) for own in members_of(dataset)], axis=0)
    order = np.lexsort((np.arange(score.size), -gene_totals(counts), -score))
    return np.sort(order[:n_genes])


def members_of(dataset: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return the cells of each dataset."""
    return [np.flatnonzero(dataset == d) for d in np.unique(dataset)]

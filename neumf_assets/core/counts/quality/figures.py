"""Figures of each cell: totals, genes seen, shares of families of genes and of its most frequent genes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.counts.genes.families import HAEMOGLOBIN, MITOCHONDRIAL, RIBOSOMAL, families

TOP_GENES = 20
Blocks = Callable[[], Iterator[tuple[slice, sparse.csr_matrix]]]
"""Gives the cells in blocks: which, and their rows."""


@dataclass(frozen=True)
class CellFigures:
    """Figures of the cells of a dataset, one value for each cell, and of its genes.

    Attributes
    ----------
    totals, genes_seen
        Counts, and genes with a count.
    mito_share, ribo_share, hb_share
        Shares of the counts that are of mitochondrial, ribosomal and haemoglobin genes (0 for empty cells).
    top_share
        Share of the counts that is of the cell's own 20 most frequent genes.
    in_cells
        For each gene, the cells that show it.
    known
        How many genes of each family the dataset has.
    """

    totals: NDArray[np.float64]
    genes_seen: NDArray[np.int64]
    mito_share: NDArray[np.float64]
    ribo_share: NDArray[np.float64]
    hb_share: NDArray[np.float64]
    top_share: NDArray[np.float64]
    in_cells: NDArray[np.int64]
    known: dict[str, int]


def cell_figures(
    blocks: Blocks, shape: tuple[int, int], var: pd.DataFrame, mito_prefixes: tuple[str, ...]
) -> CellFigures:
    """Compute them, a block of cells at a time.

    Parameters
    ----------
    blocks
        Gives the counts.
    shape
        Cells × genes.
    var
        The genes: their names in the file and in the dataset, accessions where there are any.
    mito_prefixes
        How names of mitochondrial genes begin.
    """
    n_cells, n_genes = shape
    names = [var[name].to_numpy(dtype=object) for name in ("original_name", "gene_symbol") if name in var]
    ids = (
        var["gene_id"].astype(str).to_numpy(dtype=object)
        if "gene_id" in var
        else np.full(n_genes, "", dtype=object)
    )
    kinds = families(names, ids, mito_prefixes)
    members = np.column_stack([kinds[name] for name in (MITOCHONDRIAL, RIBOSOMAL, HAEMOGLOBIN)]).astype(float)
    totals, top, seen = np.zeros(n_cells), np.zeros(n_cells), np.zeros(n_cells, np.int64)
    of_family = np.zeros((n_cells, 3))
    in_cells = np.zeros(n_genes, np.int64)
    for rows, X in blocks():
        totals[rows] = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
        of_family[rows] = X @ members
        seen[rows] = np.diff(X.indptr)
        top[rows] = _top(X)
        in_cells += np.bincount(X.indices, minlength=n_genes)
    shares = np.divide(of_family, totals[:, None], out=np.zeros_like(of_family), where=totals[:, None] > 0)
    top = np.divide(top, totals, out=np.zeros_like(top), where=totals > 0)
    known = {name: int(inside.sum()) for name, inside in kinds.items()}
    return CellFigures(totals, seen, shares[:, 0], shares[:, 1], shares[:, 2], top, in_cells, known)


def _top(X: sparse.csr_matrix) -> NDArray[np.float64]:
    """Counts of each cell's most frequent genes."""
    found = np.zeros(X.shape[0])
    for row, (start, stop) in enumerate(zip(X.indptr[:-1], X.indptr[1:], strict=True)):
        values = X.data[start:stop]
        if values.size > TOP_GENES:
            values = np.partition(values, values.size - TOP_GENES)[-TOP_GENES:]
        found[row] = values.sum(dtype=np.float64)
    return found

"""Counts of all cells of a type in a sample, added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neumf_assets.core.counts.stored import BLOCK_CELLS
from neumf_assets.core.errors import NeumfError


class Cells(Protocol):
    """Counts of which some cells at a time are read."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells × genes."""

    @property
    def var_names(self) -> pd.Index:
        """Names of the genes."""

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Read the cells from ``start`` to ``stop``."""


def pseudobulk(parts: Mapping[str, Cells], group: np.ndarray, n_groups: int, genes: pd.Index) -> np.ndarray:
    """Add up the counts of the cells of each group.

    Parameters
    ----------
    parts
        The datasets, in the order of their cells.
    group
        Each cell's group, over all datasets; -1 for cells that belong to none.
    genes
        Genes that all datasets have.

    Returns
    -------
    numpy.ndarray
        Groups × genes, int64.

    Raises
    ------
    NeumfError
        The groups do not fit the cells, or values are not whole numbers.
    """
    if sum(part.shape[0] for part in parts.values()) != len(group):
        raise NeumfError(f"{len(group)} groups do not fit the cells of {', '.join(parts)}.")
    total, first = np.zeros((n_groups, len(genes)), dtype=np.int64), 0
    for name, part in parts.items():
        columns = part.var_names.get_indexer(genes)
        for start in range(0, part.shape[0], BLOCK_CELLS):
            stop = min(start + BLOCK_CELLS, part.shape[0])
            own = group[first + start : first + stop]
            rows = part.rows(start, stop)
            if rows.dtype.kind not in "iu" and (rows.data != np.round(rows.data)).any():
                raise NeumfError(f"{name} holds values that are no counts; samples are compared on counts.")
            taken = np.flatnonzero(own >= 0)
            ones = np.ones(taken.size, dtype=np.int64)
            adding = sp.csr_matrix((ones, (own[taken], taken)), shape=(n_groups, stop - start))
            found = np.unique(own[taken])  # of all types and samples a block has few
            total[found] += (adding[found] @ rows.astype(np.int64)).toarray()[:, columns]
        first += part.shape[0]
    return total

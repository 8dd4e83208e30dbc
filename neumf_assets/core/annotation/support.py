"""Whether a cell has a counterpart among reference cells: do the references that it points to point back?

A type that the reference lacks is pulled to the type next to it by any alignment, and its cells then vote for that
with one voice. But the references there have nearer cells of their own kind to point to. That needs no scale: neither
a distance nor a density is compared between datasets.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from neumf_assets.core.cells.neighbours import find_cross_neighbours, find_neighbours, row_blocks
from neumf_assets.core.cells.settings import Metric

OWN_NEIGHBOURS = 20
"""A reference points back to a cell where it points to the cell or to one of these."""
SMOOTHINGS = 2
MOST_BACK = 10
"""References point to as many more cells as there are more of these, up to so many times as many."""


def mutual_support(
    queries: np.ndarray, references: np.ndarray, *, k: int = 30, metric: Metric = "cosine"
) -> np.ndarray:
    """Share of each query's ``k`` nearest references that point back to it, evened out among its neighbours.

    A reference points back if the query, or one of its 20 nearest queries, is among the nearest queries of the
    reference.

    Parameters
    ----------
    queries, references
        Cells × dimensions in one space. Queries are of one dataset.

    Returns
    -------
    numpy.ndarray
        One share for each query, float64; zeros where there are no references.
    """
    n_queries, n_references = len(queries), len(references)
    if not n_queries or not n_references:
        return np.zeros(n_queries)
    near = find_cross_neighbours(queries, references, k, metric)
    back = min(MOST_BACK * k, max(k, round(k * n_queries / n_references)))
    pointed = find_cross_neighbours(references, queries, back, metric)
    # references × queries, so that a row of the transposed matrix lists who points to a query
    points_to = _incidence(pointed, n_queries).T.tocsr()
    own = _hood(queries, metric)
    reached = _incidence(own, n_queries)
    share = np.empty(n_queries)
    for rows in row_blocks(n_queries):
        who = reached[rows] @ points_to
        who.data[:] = 1
        share[rows] = (
            np.asarray(_incidence(near[rows], n_references).multiply(who).sum(axis=1)).ravel() / near.shape[1]
        )
    for _ in range(SMOOTHINGS):
        share = (share + share[own[:, 1:]].mean(axis=1)) / 2 if own.shape[1] > 1 else share
    return share


def _hood(points: np.ndarray, metric: Metric) -> np.ndarray:
    """Each cell and its nearest neighbours among the same cells."""
    cells = np.arange(len(points))[:, None]
    if len(points) < 2:
        return cells
    return np.hstack([cells, find_neighbours(points, OWN_NEIGHBOURS, metric=metric).indices])


def _incidence(indices: np.ndarray, columns: int) -> sp.csr_matrix:
    rows, k = indices.shape
    ones = np.ones(indices.size, dtype=np.float32)
    return sp.csr_matrix((ones, indices.ravel(), np.arange(rows + 1) * k), shape=(rows, columns))

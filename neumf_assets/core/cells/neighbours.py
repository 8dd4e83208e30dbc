"""Nearest neighbours of cells and the graphs on them: found once, used by Leiden, UMAP and the scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from neumf_assets.core.cells.settings import (
    ClusterSettings,
    Metric,
    MetricsSettings,
    UmapSettings,
)
from neumf_assets.core.errors import NeumfError

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of every cell, the cell itself excluded, nearest first.

    Parameters
    ----------
    indices
        Cells × k positions of the neighbours, int32.
    distances
        Cells × k distances, float32; cosine distance is ``1 − cos``.
    metric
        ``cosine`` or ``euclidean``.
    """

    indices: np.ndarray
    distances: np.ndarray
    metric: Metric

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.indices.shape[0])

    @property
    def k(self) -> int:
        """Neighbours per cell."""
        return int(self.indices.shape[1])

    def nearest(self, k: int) -> Neighbours:
        """Give the ``k`` nearest of these neighbours (all of them where there are fewer)."""
        return Neighbours(self.indices[:, :k], self.distances[:, :k], self.metric)


def neighbours_needed(
    clusters: ClusterSettings, umap: UmapSettings, metrics: MetricsSettings, n_cells: int = 0
) -> int:
    """Count the neighbours per cell that one search must find to serve graph, UMAP and scores.

    LISI wants many more than the others. Above ``exact_up_to`` cells it is computed from a sample of the cells,
    whose neighbours are found then, since those of all would take several times the time and memory.
    """
    lisi = round(3 * metrics.lisi_perplexity) if n_cells <= clusters.exact_up_to else 0
    return max(clusters.n_neighbors - 1, umap.n_neighbors - 1, metrics.mixing_neighbors, lisi)


def find_neighbours(
    embedding: np.ndarray, k: int, *, metric: Metric = "cosine", exact_up_to: int = 50_000, seed: int = 0
) -> Neighbours:
    """Find the nearest neighbours of every cell.

    Exact up to ``exact_up_to`` cells (all distances, in blocks), above it by nearest-neighbour descent
    (Dong et al. 2011, pynndescent). Both give the same result on every run with one seed.

    Parameters
    ----------
    embedding
        Cells × dimensions, finite. A cell of zeros has cosine distance 1 to every cell.
    k
        Neighbours per cell; fewer are given where there are no more other cells.

    Raises
    ------
    NeumfError
        Fewer than two cells, or values that are not finite.
    """
    points = _points(embedding, metric)
    k = min(k, len(points) - 1)
    exact = len(points) <= exact_up_to
    found = _exact(points, points, k + 1) if exact else _approximate(points, k + 1, seed)
    return _sorted(points, found, metric)


def find_cross_neighbours(
    queries: np.ndarray, references: np.ndarray, k: int, metric: Metric = "cosine"
) -> np.ndarray:
    """Find, for every query cell, its ``k`` nearest reference cells (all distances), nearest first.

    Parameters
    ----------
    queries, references
        Cells × dimensions.

    Returns
    -------
    numpy.ndarray
        Queries × min(k, references) positions among the references, int64.
    """
    k = min(k, len(references))
    return _exact(_points(queries, metric, fewest=1), _points(references, metric, fewest=1), k)


def find_neighbours_of(
    cells: np.ndarray, embedding: np.ndarray, k: int, metric: Metric = "cosine"
) -> Neighbours:
    """Find the ``k`` nearest neighbours of some cells among all (all distances)."""
    points = _points(embedding, metric)
    found = _exact(points[cells], points, min(k, len(points) - 1) + 1)
    return _sorted(points, found, metric, cells)


def find_references(
    queries: np.ndarray, references: np.ndarray, k: int, metric: Metric = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`find_cross_neighbours`, with the distances (Euclidean; for cosine between unit vectors)."""
    near = find_cross_neighbours(queries, references, k, metric)
    own, others = _points(queries, metric, fewest=1), _points(references, metric, fewest=1)
    return near, np.linalg.norm(own[:, None, :] - others[near], axis=2)


def cell_graph(neighbours: Neighbours, settings: ClusterSettings | None = None) -> sp.csr_matrix:
    """Build the weighted graph that Leiden and Louvain cluster.

    ``shared`` joins two cells by the Jaccard index of their neighbourhoods (each holds ``n_neighbors`` cells,
    the cell itself among them) and drops edges at or below ``prune`` (Xu & Su 2015; the graph of Seurat and
    rliger). ``nearest`` joins two cells when one is among the neighbours of the other.

    Returns
    -------
    scipy.sparse.csr_matrix
        Cells × cells, symmetric, float32, no diagonal.
    """
    settings = settings or ClusterSettings()
    near = neighbours.nearest(settings.n_neighbors - 1)
    n, k = near.n_cells, near.k + 1
    members = np.concatenate([np.arange(n, dtype=np.int32)[:, None], near.indices], axis=1, dtype=np.int32)
    starts = np.arange(0, n * k + 1, k, dtype=np.int32 if n * k < 2**31 else np.int64)
    incidence = sp.csr_matrix((np.ones(n * k, np.float32), members.ravel(), starts), shape=(n, n))
    if settings.graph == "nearest":
        graph = incidence.maximum(incidence.T).tocsr()
    else:
        transposed = incidence.T.tocsr()
        parts = [_shared(incidence[rows], transposed, k, settings.prune) for rows in row_blocks(n)]
        graph = sp.vstack(parts, format="csr")
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def _shared(some: sp.csr_matrix, transposed: sp.csr_matrix, k: int, prune: float) -> sp.csr_matrix:
    """Give some rows of the shared-neighbour graph, pruned: most edges of the product are not kept."""
    graph = (some @ transposed).tocsr()
    graph.data = graph.data / (2 * k - graph.data)
    graph.data[graph.data <= prune] = 0
    graph.eliminate_zeros()
    return graph


def row_blocks(n_cells: int) -> Iterator[slice]:
    """Cut cells into slices, so that what is computed from all neighbours of a cell is small."""
    for start in range(0, n_cells, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, n_cells))


def _points(embedding: np.ndarray, metric: Metric, fewest: int = 2) -> np.ndarray:
    """Check the embedding; for cosine scale cells to length 1: then Euclidean order is cosine order."""
    points = np.ascontiguousarray(embedding, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] == 0 or len(points) < fewest:
        raise NeumfError(f"Neighbours need at least {fewest} cells × 1 dimension, not {points.shape}.")
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise NeumfError(f"The embedding of cell {row} is not finite; its model has diverged.")
    if metric == "cosine":
        length = np.linalg.norm(points, axis=1, keepdims=True)
        return np.asarray(points / np.where(length > 0, length, 1), dtype=np.float32)
    return points


def _exact(queries: np.ndarray, references: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="euclidean").fit(references)
    return search.kneighbors(queries, return_distance=False).astype(np.int64)


def _approximate(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    from pynndescent import NNDescent

    index = NNDescent(points, n_neighbors=k, metric="euclidean", random_state=seed)
    return np.asarray(index.neighbor_graph[0])


def _without_self(found: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Drop the cell itself from its list, or the farthest neighbour where duplicates pushed it out."""
    keep = found != cells[:, None]
    keep[keep.all(axis=1), -1] = False
    return found[keep].reshape(len(found), -1)


def _sorted(
    points: np.ndarray, found: np.ndarray, metric: Metric, cells: np.ndarray | None = None
) -> Neighbours:
    """Take the cells themselves out; compute the distances accurately (the search rounds near zero) and sort by
    distance, then position."""
    shape = (len(found), found.shape[1] - 1)
    indices, distances = np.empty(shape, np.int32), np.empty(shape, np.float32)
    cells = np.arange(len(points)) if cells is None else cells
    for rows in row_blocks(len(cells)):
        near = _without_self(found[rows], cells[rows])
        others = points[near]
        if metric == "cosine":
            apart = np.clip(1 - np.einsum("nd,nkd->nk", points[cells[rows]], others), 0, 2)
        else:
            apart = np.linalg.norm(points[cells[rows], None, :] - others, axis=2)
        apart = apart.astype(np.float32)
        order = np.lexsort((near, apart), axis=1)
        indices[rows] = np.take_along_axis(near, order, axis=1)
        distances[rows] = np.take_along_axis(apart, order, axis=1)
    return Neighbours(indices, distances, metric)

"""Nearest neighbours of cells and the graphs on them: found once, used by Leiden, UMAP and the scores."""

from __future__ import annotations

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

_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of every cell, the cell itself excluded, nearest first.

    Parameters
    ----------
    indices
        Cells × k positions of the neighbours, int64.
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


def neighbours_needed(clusters: ClusterSettings, umap: UmapSettings, metrics: MetricsSettings) -> int:
    """Count the neighbours per cell that one search must find to serve graph, UMAP and scores."""
    lisi = round(3 * metrics.lisi_perplexity)
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
    return _sorted(points, _without_self(found), metric)


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
    members = np.concatenate([np.arange(n)[:, None], near.indices], axis=1)
    incidence = sp.csr_matrix(
        (np.ones(n * k, np.float32), members.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n)
    )
    if settings.graph == "nearest":
        graph = incidence.maximum(incidence.T).tocsr()
    else:
        graph = (incidence @ incidence.T).tocsr()
        graph.data = graph.data / (2 * k - graph.data)
        graph.data[graph.data <= settings.prune] = 0
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


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
    return np.asarray(index.neighbor_graph[0], dtype=np.int64)


def _without_self(found: np.ndarray) -> np.ndarray:
    """Drop the cell itself from its list, or the farthest neighbour where duplicates pushed it out."""
    keep = found != np.arange(len(found))[:, None]
    keep[keep.all(axis=1), -1] = False
    return found[keep].reshape(len(found), -1)


def _sorted(points: np.ndarray, indices: np.ndarray, metric: Metric) -> Neighbours:
    """Compute the distances accurately (the search rounds near zero) and sort by distance, then position."""
    distances = np.empty(indices.shape, np.float32)
    for start in range(0, len(points), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        others = points[indices[rows]]
        if metric == "cosine":
            distances[rows] = np.clip(1 - np.einsum("nd,nkd->nk", points[rows], others), 0, 2)
        else:
            distances[rows] = np.linalg.norm(points[rows, None, :] - others, axis=2)
    order = np.lexsort((indices, distances), axis=1)
    return Neighbours(
        np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1), metric
    )

"""Nearest neighbours of cells and the graphs on them: found once, used by Leiden, UMAP and the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from neumf_assets.core import memory
from neumf_assets.core.cells.inverted_lists import approximate_neighbours, nearest
from neumf_assets.core.cells.settings import (
    ClusterSettings,
    Metric,
    MetricsSettings,
    UmapSettings,
)
from neumf_assets.core.errors import NeumfError

_ROWS_AT_ONCE = 4096
BYTES_PER_NODE = 3000
"""Peak memory of graph and Leiden for each node."""
LEAST_NODES = 20_000


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

    Exact up to ``exact_up_to`` cells (all distances, in blocks), above it by inverted lists. Both give the same
    result on every run with one seed.

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
    found = _exact(points, points, k + 1) if exact else approximate_neighbours(points, k + 1, seed)
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


def projection(
    queries: np.ndarray, references: np.ndarray, k: int, metric: Metric = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ``k`` nearest references of every query, and how much each weighs where values are carried over.

    The weights are UMAP's for cells that are added to a layout, with the mean distance beyond the nearest as
    their scale; they sum to 1.
    """
    near, apart = find_references(queries, references, k, metric)
    beyond = apart - apart[:, :1]
    weights = np.exp(-beyond / np.maximum(beyond.mean(axis=1, keepdims=True), 1e-12))
    return near, weights / weights.sum(axis=1, keepdims=True)


def graph_nodes(n_cells: int, settings: ClusterSettings) -> int:
    """Give the nodes that a graph of so many cells may have: as set, or fewer where memory does not hold them."""
    nodes = min(n_cells, settings.max_nodes)
    fitting = min(nodes, max(LEAST_NODES, memory.budget() // BYTES_PER_NODE))
    if fitting < nodes:
        instead = (
            f"the nearest cells are joined to {fitting} nodes (clusters.max_nodes: {settings.max_nodes})"
        )
        memory.exceeds(BYTES_PER_NODE * nodes, f"Leiden on a graph of {nodes} nodes", instead)
    return fitting


def neighbour_bytes(n_cells: int, dimensions: int, k: int) -> int:
    """Estimate what an embedding of all cells takes with their neighbours, names and labels."""
    return n_cells * (24 * dimensions + 16 * k + 300)


def merged_cells(neighbours: Neighbours, max_nodes: int) -> np.ndarray:
    """Group the cells into at most ``max_nodes`` nodes, or leave each one a node where there are fewer.

    The nearest ones are joined first: round by round, nodes are linked with that of the nearest cell outside
    among their cells' neighbours, over the shortest links, and what is linked becomes one node.

    Returns
    -------
    numpy.ndarray
        The node of every cell, from 0.
    """
    nodes = np.arange(neighbours.n_cells)
    while (n := int(nodes.max(initial=-1)) + 1) > max_nodes:
        chosen, apart = _nearest_outside(neighbours, nodes, n)
        # two nodes may choose each other, so that there are fewer joins than links
        shortest = np.argsort(apart, kind="stable")[: max(n - max_nodes, n // 100 + 1) * 3 // 2]
        linked = shortest[np.isfinite(apart[shortest])]
        links = sp.csr_matrix((np.ones(linked.size, np.int8), (linked, chosen[linked])), shape=(n, n))
        nodes = sp.csgraph.connected_components(links, directed=False)[1][nodes]
        if not linked.size:
            break
    return nodes


def _nearest_outside(neighbours: Neighbours, nodes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the node that holds the nearest cell outside of each node, and how far it is; infinitely where none is
    known."""
    apart, chosen = np.full(n, np.inf, np.float32), np.zeros(n, np.intp)
    for rows in row_blocks(neighbours.n_cells):
        others = nodes[neighbours.indices[rows]]
        outside = others != nodes[rows, None]
        first = outside.argmax(axis=1)
        some = np.flatnonzero(outside.any(axis=1))
        own, distance = nodes[rows][some], neighbours.distances[rows][some, first[some]]
        order = np.lexsort((distance, own))
        own, distance, other = own[order], distance[order], others[some, first[some]][order]
        leads = np.flatnonzero(np.diff(own, prepend=-1))
        better = leads[distance[leads] < apart[own[leads]]]
        apart[own[better]], chosen[own[better]] = distance[better], other[better]
    return chosen, apart


def cell_graph(
    neighbours: Neighbours, settings: ClusterSettings | None = None, nodes: np.ndarray | None = None
) -> sp.csr_matrix:
    """Build the weighted graph that Leiden and Louvain cluster.

    ``shared`` joins two cells by the Jaccard index of their neighbourhoods (each holds ``n_neighbors`` cells,
    the cell itself among them) and drops edges at or below ``prune`` (Xu & Su 2015; the graph of Seurat and
    rliger). ``nearest`` joins two cells when one is among the neighbours of the other.

    Parameters
    ----------
    nodes
        The node of every cell (:func:`merged_cells`); the weights between two nodes are summed. The sum within
        a node is on the diagonal, so that a partition of the nodes has the modularity of that of the cells.

    Returns
    -------
    scipy.sparse.csr_matrix
        Cells × cells, symmetric, float32, no diagonal; or nodes × nodes.
    """
    settings = settings or ClusterSettings()
    near = neighbours.nearest(settings.n_neighbors - 1)
    n, k = near.n_cells, near.k + 1
    members = np.concatenate([np.arange(n, dtype=np.int32)[:, None], near.indices], axis=1, dtype=np.int32)
    starts = np.arange(0, n * k + 1, k, dtype=np.int32 if n * k < 2**31 else np.int64)
    incidence = sp.csr_matrix((np.ones(n * k, np.int16), members.ravel(), starts), shape=(n, n))
    if settings.graph == "nearest":
        both = incidence.maximum(incidence.T).tocsr().astype(np.float32)

        def rows_of(cells: np.ndarray | slice) -> sp.csr_matrix:
            return both[cells]
    else:
        transposed = incidence.T.tocsr()

        def rows_of(cells: np.ndarray | slice) -> sp.csr_matrix:
            return _shared(incidence[cells], transposed, k, settings.prune)

    if nodes is not None:
        return _between_nodes(rows_of, nodes)
    graph = sp.vstack([rows_of(rows) for rows in row_blocks(n)], format="csr")
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def _between_nodes(rows_of: Callable[[np.ndarray], sp.csr_matrix], nodes: np.ndarray) -> sp.csr_matrix:
    """Sum a cells × cells graph, given row by row with 1 on its diagonal, over the nodes of the cells."""
    n, sizes, order = len(nodes), np.bincount(nodes), np.argsort(nodes, kind="stable")
    ends = np.cumsum(sizes)
    to_nodes = sp.csr_matrix((np.ones(n, np.float32), nodes, np.arange(n + 1)), shape=(n, sizes.size))
    parts, first = [], 0
    while first < sizes.size:
        start = int(ends[first] - sizes[first])
        last = max(first + 1, int(np.searchsorted(ends, start + _ROWS_AT_ONCE, side="right")))
        cells = order[start : ends[last - 1]]
        borders = np.concatenate([[0], ends[first:last] - start])
        members = sp.csr_matrix((np.ones(cells.size, np.float32), np.arange(cells.size), borders))
        parts.append(members @ (rows_of(cells) @ to_nodes))
        first = last
    graph = sp.vstack(parts, format="csr")
    graph.setdiag(np.maximum(graph.diagonal() - sizes, 0))
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def _shared(some: sp.csr_matrix, transposed: sp.csr_matrix, k: int, prune: float) -> sp.csr_matrix:
    """Give some rows of the shared-neighbour graph, pruned: most edges of the product are not kept."""
    graph = (some @ transposed).tocsr().astype(np.float32)
    graph.data /= 2 * k - graph.data
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
    return nearest(queries, references, k).astype(np.int64)


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

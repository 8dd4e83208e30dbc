"""Clusters of cells (Leiden, Louvain, k-means, HDBSCAN) and modules of genes."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import igraph
import numpy as np
import pandas as pd
import scipy.sparse as sp
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neumf_assets.core.cells.inverted_lists import nearest
from neumf_assets.core.cells.neighbours import row_blocks
from neumf_assets.core.cells.settings import ClusterSettings, Metric
from neumf_assets.core.progress import Progress, silent

NOISE = "noise"
_EDGES_AT_ONCE = 2_000_000
_LEIDEN_COLUMN = re.compile(r"leiden_r(?P<resolution>[0-9.eE+-]+)_s(?P<seed>\d+)")
# igraph draws from one generator per process
_IGRAPH_RANDOM = threading.Lock()


def leiden_column(resolution: float, seed: int) -> str:
    """Name the column of one Leiden run."""
    return f"leiden_r{resolution:g}_s{seed}"


def leiden_run(column: str) -> tuple[float, int] | None:
    """Give the resolution and seed that a column's name states, or None for another column."""
    found = _LEIDEN_COLUMN.fullmatch(column)
    return (float(found["resolution"]), int(found["seed"])) if found else None


def cluster_cells(
    embedding: np.ndarray,
    graph: sp.spmatrix,
    settings: ClusterSettings | None = None,
    *,
    nodes: np.ndarray | None = None,
    cells: Sequence[str] | None = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Cluster cells by all methods of the settings.

    Parameters
    ----------
    embedding
        Cells × dimensions, for k-means and HDBSCAN; scaled to length 1 under the cosine metric.
    graph
        Cells × cells weights, symmetric (see ``cell_graph``), for Leiden and Louvain; or nodes × nodes.
    nodes
        The node of every cell, where the graph is one of nodes.
    cells
        Names of the cells, used as index.

    Returns
    -------
    pandas.DataFrame
        One categorical column per clustering: ``leiden``, ``louvain`` (default resolution, first seed),
        ``kmeans``, ``hdbscan``, and ``leiden_r{resolution}_s{seed}`` for every Leiden run. Clusters are named
        ``0``, ``1``, … from the largest to the smallest; cells that HDBSCAN leaves out are ``noise``.
    """
    settings = settings or ClusterSettings()
    columns: dict[str, pd.Categorical[str]] = {}
    place = slice(None) if nodes is None else nodes
    if "leiden" in settings.methods:
        columns |= _leiden_columns(graph, settings, place, progress)
    if "louvain" in settings.methods:
        columns["louvain"] = named_clusters(
            louvain(graph, settings.default_resolution, settings.seeds[0])[place]
        )
    if {"kmeans", "hdbscan"}.intersection(settings.methods):
        columns |= _point_clusters(_directions(embedding, settings.metric), settings)
    return pd.DataFrame(columns, index=None if cells is None else pd.Index(cells, name="cell"))


def cluster_genes(
    gene_embedding: np.ndarray,
    genes: Sequence[str],
    n_modules: int,
    *,
    seed: int = 0,
    metric: Metric = "cosine",
) -> pd.Series:
    """Group genes into modules by k-means of their embedding or loadings (genes × dimensions).

    Returns
    -------
    pandas.Series
        Categorical ``module`` indexed by gene, ``0`` the largest.
    """
    codes = kmeans(_directions(gene_embedding, metric), n_modules, seed)
    return pd.Series(named_clusters(codes), index=pd.Index(genes, name="gene"), name="module")


def leiden(graph: sp.spmatrix, resolution: float, seed: int, iterations: int = 2) -> np.ndarray:
    """Cluster a weighted graph by Leiden (Traag et al. 2019) under modularity; gives one code per cell."""
    return _leiden(*_edges(graph), _strengths(graph), resolution, seed, iterations)


def louvain(graph: sp.spmatrix, resolution: float, seed: int) -> np.ndarray:
    """Cluster a weighted graph by Louvain (Blondel et al. 2008) under modularity; gives one code per cell."""
    edges, weights = _edges(graph)
    with _igraph_seed(seed):
        return np.asarray(edges.community_multilevel(weights=weights, resolution=resolution).membership)


def kmeans(
    points: np.ndarray, k: int, seed: int, restarts: int = 10, *, others: np.ndarray | None = None
) -> np.ndarray:
    """Cluster points (rows × dimensions) by k-means; at most as many clusters as points.

    With ``others``, give the clusters of those instead: of each the one whose centre is nearest.
    """
    from sklearn.cluster import KMeans

    model = KMeans(min(k, len(points)), n_init=restarts, random_state=seed)
    # threads add their partial sums in the order in which they finish, which changes the last bits
    with threadpool_limits(limits=1):
        codes = model.fit_predict(points)
        return codes if others is None or others is points else model.predict(others)


def hdbscan(points: np.ndarray, min_size: int, min_samples: int) -> np.ndarray:
    """Cluster points (rows × dimensions) by HDBSCAN (Campello et al. 2013); noise has the code -1."""
    from sklearn.cluster import HDBSCAN

    if len(points) <= max(min_size, min_samples):
        return np.full(len(points), -1)
    return HDBSCAN(min_cluster_size=min_size, min_samples=min_samples, copy=True).fit_predict(points)


def named_clusters(codes: np.ndarray) -> pd.Categorical[str]:
    """Name clusters ``0``, ``1``, … from the largest down (ties by code); negative codes are noise."""
    codes = np.asarray(codes, dtype=np.int64)
    present, sizes = np.unique(codes[codes >= 0], return_counts=True)
    ranked = present[np.lexsort((present, -sizes))]
    names = [str(i) for i in range(len(ranked))]
    rank = np.full(int(codes.max(initial=-1)) + 2, -1)
    rank[ranked] = np.arange(len(ranked))
    if (codes < 0).any():
        names.append(NOISE)
        rank[-1] = len(ranked)
    return pd.Categorical.from_codes(rank[codes], categories=pd.Index(names))


def _point_clusters(points: np.ndarray, settings: ClusterSettings) -> dict[str, pd.Categorical[str]]:
    """Cluster points by k-means and HDBSCAN, learning from at most ``fit_cells`` of them."""
    seed, columns = settings.seeds[0], {}
    fitted = points
    if len(points) > settings.fit_cells:
        fitted = points[np.random.default_rng(seed).choice(len(points), settings.fit_cells, replace=False)]
    if "kmeans" in settings.methods:
        codes = kmeans(fitted, settings.kmeans_k, seed, settings.kmeans_restarts, others=points)
        columns["kmeans"] = named_clusters(codes)
    if "hdbscan" in settings.methods:
        codes = hdbscan(fitted, settings.hdbscan_min_size, settings.hdbscan_min_samples)
        if fitted is not points:
            codes = np.concatenate(
                [codes[nearest(points[rows], fitted, 1)[:, 0]] for rows in row_blocks(len(points))]
            )
        columns["hdbscan"] = named_clusters(codes)
    return columns


def _leiden_columns(
    graph: sp.spmatrix, settings: ClusterSettings, place: np.ndarray | slice, progress: Progress
) -> dict[str, pd.Categorical[str]]:
    edges, weights = _edges(graph)
    strengths = _strengths(graph)
    grid = [(resolution, seed) for resolution in settings.resolutions for seed in settings.seeds]
    runs = {}
    for done, (resolution, seed) in enumerate(grid, start=1):
        codes = _leiden(edges, weights, strengths, resolution, seed, settings.leiden_iterations)
        runs[leiden_column(resolution, seed)] = named_clusters(codes[place])
        progress("leiden", done, len(grid))
    chosen = runs[leiden_column(settings.default_resolution, settings.seeds[0])]
    return {"leiden": chosen, **runs}


def _leiden(
    edges: igraph.Graph,
    weights: np.ndarray,
    strengths: np.ndarray,
    resolution: float,
    seed: int,
    iterations: int,
) -> np.ndarray:
    # modularity as the constant Potts model of nodes that weigh what their edges do: under the name of
    # modularity igraph (1.0) goes wrong where nodes have edges to themselves
    with _igraph_seed(seed):
        found = edges.community_leiden(
            "CPM",
            weights=weights,
            node_weights=strengths,
            resolution=resolution / max(strengths.sum(), 1e-12),
            n_iterations=iterations,
        )
    return np.asarray(found.membership)


def _strengths(graph: sp.spmatrix) -> np.ndarray:
    return np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()


def _edges(graph: sp.spmatrix) -> tuple[igraph.Graph, np.ndarray]:
    """Give the graph to igraph: each edge once, with its weight."""
    rows = sp.csr_matrix(graph)
    edges, waiting, weights = igraph.Graph(n=rows.shape[0]), [], []
    for block in row_blocks(rows.shape[0]):
        upper = sp.triu(rows[block], k=block.start, format="coo")
        ends = np.column_stack([upper.row + block.start, upper.col]).astype(np.int64)
        # what is on the diagonal counts an edge from both its ends, as igraph does with a loop
        weights.append(np.where(ends[:, 0] == ends[:, 1], upper.data / 2, upper.data))
        waiting.append(ends)
        # in parts: a graph that is made of all its edges at once takes several times the memory
        if sum(map(len, waiting)) >= _EDGES_AT_ONCE or block.stop == rows.shape[0]:
            edges.add_edges(np.concatenate(waiting))
            waiting = []
    return edges, np.concatenate(weights, dtype=np.float64)


@contextmanager
def _igraph_seed(seed: int) -> Iterator[None]:
    with _IGRAPH_RANDOM:
        igraph.set_random_number_generator(random.Random(seed))
        try:
            yield
        finally:
            igraph.set_random_number_generator(random)


def _directions(embedding: np.ndarray, metric: Metric) -> np.ndarray:
    points = np.asarray(embedding, dtype=np.float64)
    if metric == "euclidean":
        return points
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(length > 0, length, 1)

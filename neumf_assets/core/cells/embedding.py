"""Two-dimensional pictures of the cells: UMAP and t-SNE."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from math import isqrt

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neumf_assets.core import memory
from neumf_assets.core.cells.neighbours import Neighbours, find_neighbours, projection, row_blocks
from neumf_assets.core.cells.settings import Metric, UmapSettings

_FEWEST_CELLS = 5
_PROJECT_ON = 8
SAMPLE = 20_000
"""Cells that are laid out where all of them would take more memory than they may."""
_LANCZOS_UP_TO = 2_000_000
_UMAP_BYTES_PER_NEIGHBOUR = 100
_TSNE_BYTES_PER_NEIGHBOUR = 64
_TSNE_BLOCK_MIB = 64
_COMPILED = (
    ("umap.umap_", "smooth_knn_dist"),
    ("umap.umap_", "compute_membership_strengths"),
    ("umap.layouts", "_nb_optimize_layout_euclidean_single_epoch"),
)


def umap_embed(
    embedding: np.ndarray, neighbours: Neighbours, settings: UmapSettings | None = None
) -> np.ndarray:
    """Lay the cells out in two dimensions by UMAP (McInnes et al. 2018) on neighbours that are already known.

    Parameters
    ----------
    embedding
        Cells × dimensions; used only to place parts of the graph that nothing connects.
    neighbours
        Their neighbours; at least ``settings.n_neighbors − 1`` each, where there are as many cells.

    Returns
    -------
    numpy.ndarray
        Cells × 2, float32; the same on every run with one seed. Fewer than five cells have no layout and are
        given their first two dimensions.
    """
    settings = settings or UmapSettings()
    points = np.ascontiguousarray(embedding, dtype=np.float32)
    if len(points) < _FEWEST_CELLS:
        return _first_two(points)
    sample = _sample("UMAP", len(points), umap_bytes(len(points), settings.n_neighbors), settings)
    if sample is None:
        return _laid_out(points, neighbours, settings)
    metric = neighbours.metric

    def of_sample(sampled: np.ndarray) -> np.ndarray:
        near = find_neighbours(sampled, settings.n_neighbors - 1, metric=metric, seed=settings.seed)
        return _laid_out(sampled, near, settings)

    return _projected(points, sample, of_sample, metric, settings.seed)


def umap_bytes(n_cells: int, n_neighbors: int) -> int:
    """Estimate what laying out all cells takes: their graph, and the vectors that its first axes are found from.

    UMAP keeps as many of these as the root of the number of cells, up to two million.
    """
    vectors = 8 * n_cells * isqrt(n_cells) if n_cells < _LANCZOS_UP_TO else 0
    return vectors + _UMAP_BYTES_PER_NEIGHBOUR * n_cells * n_neighbors


def _sample(what: str, n_cells: int, needed: int, settings: UmapSettings) -> int | None:
    """Give the number of cells to lay out where that is not all: as set, or for want of memory."""
    if settings.sample is not None:
        return settings.sample if settings.sample < n_cells else None
    instead = f"{SAMPLE} of them are laid out, drawn by seed, and the others placed among these (umap.sample)"
    if n_cells > SAMPLE and memory.exceeds(needed, f"{what} of {n_cells} cells", instead):
        return SAMPLE
    return None


def _projected(
    points: np.ndarray, sample: int, lay_out: Callable[[np.ndarray], np.ndarray], metric: Metric, seed: int
) -> np.ndarray:
    """Lay a sample out; put every other cell at the mean of its nearest sampled cells, near ones weighing more."""
    drawn = np.random.default_rng(seed).choice(len(points), sample, replace=False)
    drawn.sort()
    sampled = points[drawn]
    layout = lay_out(sampled)
    found = np.empty((len(points), 2), np.float32)
    for rows in row_blocks(len(points)):
        closest, weights = projection(points[rows], sampled, _PROJECT_ON, metric)
        found[rows] = np.einsum("nk,nkd->nd", weights, layout[closest])
    found[drawn] = layout
    return found


def _laid_out(points: np.ndarray, neighbours: Neighbours, settings: UmapSettings) -> np.ndarray:
    import umap

    _keep_compiled()
    # umap wants fewer neighbours, the cell itself included, than cells
    near = neighbours.nearest(min(settings.n_neighbors, len(points) - 1) - 1)
    own = np.arange(len(points))[:, None]
    indices = np.concatenate([own, near.indices], axis=1).astype(np.int32)
    distances = np.concatenate([np.zeros_like(own), near.distances], axis=1).astype(np.float32)
    model = umap.UMAP(
        n_neighbors=indices.shape[1],
        metric=neighbours.metric,
        min_dist=settings.min_dist,
        spread=settings.spread,
        n_epochs=settings.n_epochs,
        random_state=settings.seed,
        n_jobs=1,
        precomputed_knn=(indices, distances, None),
    )
    # one thread: sums of several threads differ in the last bits, which the layout amplifies
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.filterwarnings("ignore", message=".*NNDescent.*")
        warnings.filterwarnings("ignore", message=".*not fully connected.*")
        warnings.filterwarnings("ignore", message=".*spectral initiali[sz]ation failed.*")
        return np.asarray(model.fit_transform(points), dtype=np.float32)


@cache
def _keep_compiled() -> None:
    """Let numba keep what it compiles for UMAP, which it would do anew in every process, for seconds.

    UMAP's own functions do not ask for it. Without a folder to write to they are compiled as before.
    """
    for module, name in _COMPILED:
        function = getattr(import_module(module), name, None)
        if function is not None:  # another version of UMAP may name it otherwise
            with suppress(RuntimeError, OSError):
                function.enable_caching()


def tsne_embed(
    embedding: np.ndarray, settings: UmapSettings | None = None, metric: Metric = "cosine"
) -> np.ndarray:
    """Lay the cells out in two dimensions by t-SNE (van der Maaten & Hinton 2008, Barnes-Hut).

    Of a sample of the cells, among which the others are placed, where UMAP does so too.

    Returns
    -------
    numpy.ndarray
        Cells × 2, float32.
    """
    settings = settings or UmapSettings()
    points = np.ascontiguousarray(embedding, dtype=np.float32)
    if len(points) < _FEWEST_CELLS:
        return _first_two(points)
    neighbours = round(3 * settings.perplexity) + 1
    needed = _TSNE_BYTES_PER_NEIGHBOUR * neighbours * len(points) + (_TSNE_BLOCK_MIB << 21)
    sample = _sample("t-SNE", len(points), needed, settings)
    if sample is None:
        return _tsne(points, settings, metric)
    return _projected(points, sample, lambda own: _tsne(own, settings, metric), metric, settings.seed)


def _tsne(points: np.ndarray, settings: UmapSettings, metric: Metric) -> np.ndarray:
    from sklearn import config_context
    from sklearn.manifold import TSNE

    model = TSNE(
        metric=metric,
        perplexity=min(settings.perplexity, (len(points) - 1) / 3),
        init="pca",
        random_state=settings.seed,
    )
    # scikit-learn computes the distances in blocks of a GiB unless told otherwise
    with threadpool_limits(limits=1, user_api="blas"), config_context(working_memory=_TSNE_BLOCK_MIB):
        return np.asarray(model.fit_transform(points), dtype=np.float32)


def _first_two(points: np.ndarray) -> np.ndarray:
    """Give the first two dimensions, the second one zero where there is none."""
    return np.pad(points[:, :2], ((0, 0), (0, max(0, 2 - points.shape[1]))))

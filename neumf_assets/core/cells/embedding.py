"""Two-dimensional pictures of the cells: UMAP and t-SNE."""

from __future__ import annotations

import warnings

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neumf_assets.core.cells.neighbours import Neighbours, find_neighbours, projection, row_blocks
from neumf_assets.core.cells.settings import Metric, UmapSettings

_FEWEST_CELLS = 5
_PROJECT_ON = 8


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
    if settings.sample is not None and settings.sample < len(points):
        return _projected(points, neighbours.metric, settings)
    return _laid_out(points, neighbours, settings)


def _projected(points: np.ndarray, metric: Metric, settings: UmapSettings) -> np.ndarray:
    """Lay a sample out; put every other cell at the mean of its nearest sampled cells, near ones weighing more."""
    assert settings.sample is not None
    drawn = np.random.default_rng(settings.seed).choice(len(points), settings.sample, replace=False)
    drawn.sort()
    sampled = points[drawn]
    near = find_neighbours(sampled, settings.n_neighbors - 1, metric=metric, seed=settings.seed)
    layout = _laid_out(sampled, near, settings)
    found = np.empty((len(points), 2), np.float32)
    for rows in row_blocks(len(points)):
        closest, weights = projection(points[rows], sampled, _PROJECT_ON, metric)
        found[rows] = np.einsum("nk,nkd->nd", weights, layout[closest])
    found[drawn] = layout
    return found


def _laid_out(points: np.ndarray, neighbours: Neighbours, settings: UmapSettings) -> np.ndarray:
    import umap

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


def tsne_embed(
    embedding: np.ndarray, settings: UmapSettings | None = None, metric: Metric = "cosine"
) -> np.ndarray:
    """Lay the cells out in two dimensions by t-SNE (van der Maaten & Hinton 2008, Barnes-Hut).

    Returns
    -------
    numpy.ndarray
        Cells × 2, float32.
    """
    settings = settings or UmapSettings()
    points = np.ascontiguousarray(embedding, dtype=np.float32)
    if len(points) < _FEWEST_CELLS:
        return _first_two(points)
    from sklearn.manifold import TSNE

    model = TSNE(
        metric=metric,
        perplexity=min(settings.perplexity, (len(points) - 1) / 3),
        init="pca",
        random_state=settings.seed,
    )
    with threadpool_limits(limits=1, user_api="blas"):
        return np.asarray(model.fit_transform(points), dtype=np.float32)


def _first_two(points: np.ndarray) -> np.ndarray:
    """Give the first two dimensions, the second one zero where there is none."""
    return np.pad(points[:, :2], ((0, 0), (0, max(0, 2 - points.shape[1]))))

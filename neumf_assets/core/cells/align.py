"""Alignment of the datasets' cells in their common embedding."""

from __future__ import annotations

import numpy as np

from neumf_assets.core.cells.neighbours import projection, row_blocks
from neumf_assets.core.cells.settings import AlignSettings
from neumf_assets.core.errors import NeumfError

GUIDES = 8
FEWEST_OF_DATASET = 100


def harmony_align(
    embedding: np.ndarray, datasets: np.ndarray, settings: AlignSettings | None = None
) -> np.ndarray:
    """Align datasets by Harmony: soft clusters that favour mixed datasets, their centroids corrected.

    Korsunsky et al. 2019 (Nat Methods 16:1289), as in harmonypy 2. The same on every run with one seed. Of more
    than ``settings.max_cells`` cells, a sample is aligned, and the others follow.

    Parameters
    ----------
    embedding
        Cells × dimensions.
    datasets
        The dataset of every cell (codes or names).

    Returns
    -------
    numpy.ndarray
        Cells × dimensions, float32; a copy of the embedding when there is one dataset only.

    Raises
    ------
    NeumfError
        Lengths differ, or values are not finite.
    """
    settings = settings or AlignSettings()
    points, datasets = np.asarray(embedding, dtype=np.float64), np.asarray(datasets)
    if points.ndim != 2 or len(points) != len(datasets):
        raise NeumfError(f"{len(datasets)} dataset codes do not fit an embedding of {points.shape}.")
    if not np.isfinite(points).all():
        raise NeumfError("The embedding is not finite; its model has diverged.")
    codes = np.unique(datasets, return_inverse=True)[1]
    if codes.max(initial=0) == 0:
        return points.astype(np.float32)
    if len(points) > settings.max_cells:
        return _following(points, codes, settings)
    return _aligned(points, codes, settings).astype(np.float32)


def _following(points: np.ndarray, codes: np.ndarray, settings: AlignSettings) -> np.ndarray:
    """Align a sample of every dataset; move every other cell as the nearest sampled cells of its dataset.

    Harmony's correction is the same for all cells of a dataset in one soft cluster, so that it changes little
    from a cell to its neighbours.
    """
    rng = np.random.default_rng(settings.seed)
    found = points.astype(np.float32)
    drawn = [
        _drawn(np.flatnonzero(codes == code), settings.max_cells / len(points), rng)
        for code in np.unique(codes)
    ]
    sample = np.sort(np.concatenate(drawn))
    moved = _aligned(points[sample], codes[sample], settings) - points[sample]
    for code in np.unique(codes):
        own, guides = np.flatnonzero(codes == code), codes[sample] == code
        for rows in row_blocks(own.size):
            near, weights = projection(found[own[rows]], points[sample[guides]], GUIDES, "euclidean")
            found[own[rows]] += np.einsum("nk,nkd->nd", weights, moved[guides][near])
    found[sample] = points[sample] + moved
    return found


def _drawn(cells: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(
        cells, min(cells.size, max(FEWEST_OF_DATASET, round(share * cells.size))), replace=False
    )


def _aligned(points: np.ndarray, codes: np.ndarray, settings: AlignSettings) -> np.ndarray:
    for _ in range(settings.passes):
        points = _harmony(points, codes, settings)
    return points


def _harmony(points: np.ndarray, codes: np.ndarray, settings: AlignSettings) -> np.ndarray:
    import harmonypy

    clusters = settings.n_clusters or int(np.clip(round(len(points) / 30), 2, 100))
    result = harmonypy.run_harmony(
        # dimensions × cells: harmonypy takes a square matrix to be of this form
        np.ascontiguousarray(points.T),
        {"dataset": codes},
        "dataset",
        theta=settings.theta,
        lamb=settings.ridge,
        sigma=settings.sigma,
        nclust=min(clusters, len(points)),
        max_iter_harmony=settings.iterations,
        random_state=settings.seed,
        verbose=False,
    )
    return np.asarray(result.Z_corr, dtype=np.float64)

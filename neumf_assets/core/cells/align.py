"""Alignment of the datasets' cells in their common embedding."""

from __future__ import annotations

import numpy as np

from neumf_assets.core.cells.settings import AlignSettings
from neumf_assets.core.errors import NeumfError


def harmony_align(
    embedding: np.ndarray, datasets: np.ndarray, settings: AlignSettings | None = None
) -> np.ndarray:
    """Align datasets by Harmony: soft clusters that favour mixed datasets, their centroids corrected.

    Korsunsky et al. 2019 (Nat Methods 16:1289), as in harmonypy 2. The same on every run with one seed.

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
    for _ in range(settings.passes):
        points = _harmony(points, codes, settings)
    return points.astype(np.float32)


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

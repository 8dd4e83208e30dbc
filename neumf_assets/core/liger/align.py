"""Alignment of the cells' factor loadings between datasets: quantile normalisation, or centroids by ridge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neumf_assets.core.cells.inverted_lists import approximate_neighbours, nearest
from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.settings import LigerSettings

_EXACT_UP_TO = 30_000


def align(
    H: Sequence[NDArray[np.float32]], settings: LigerSettings, names: Sequence[str]
) -> list[NDArray[np.float32]]:
    """Align the loadings in the way of ``settings.alignment``; one cells × k matrix per dataset, in order.

    Raises
    ------
    NeumfError
        ``settings.reference`` is not a dataset.
    """
    if settings.alignment == "none":
        return [h.astype(np.float32) for h in H]
    clusters = [factor_clusters(h, settings.vote_neighbors, settings.seed) for h in H]
    if settings.alignment == "centroid":
        return centroid_align(H, clusters, settings.centroid_ridge)
    return quantile_normalise(
        H,
        clusters,
        quantiles=settings.quantiles,
        min_cells=settings.min_cells,
        reference=reference_dataset([len(h) for h in H], names, settings.reference),
    )


def reference_dataset(sizes: Sequence[int], names: Sequence[str], reference: str | None) -> int:
    """Return the position of the reference: the named dataset, or the first with the most cells."""
    if reference is None:
        return int(np.argmax(sizes))
    if reference not in names:
        raise NeumfError(f"The reference {reference!r} is not one of the datasets: {', '.join(names)}.")
    return list(names).index(reference)


def factor_clusters(H: NDArray[np.float32], neighbors: int, seed: int = 0) -> NDArray[np.intp]:
    """Assign every cell of one dataset to a factor.

    A cell's own factor is the one with the largest loading after division by the factor's root mean square;
    its cluster is the most frequent one among its ``neighbors`` nearest cells (Euclidean, itself included),
    the larger number winning a tie (rliger's shared-factor neighbourhoods).
    """
    k = H.shape[1]
    rms = np.sqrt(np.square(H, dtype=np.float64).sum(axis=0) / max(len(H) - 1, 1))
    own = np.argmax(H / np.where(rms > 0, rms, 1), axis=1)
    neighbors = min(neighbors, len(H))
    if neighbors <= 1:
        return own
    near = _nearest(H, neighbors, seed)
    votes = np.zeros((len(H), k), np.int32)
    np.add.at(votes, (np.repeat(np.arange(len(H)), neighbors), own[near].ravel()), 1)
    return k - 1 - np.argmax(votes[:, ::-1], axis=1)


def quantile_normalise(
    H: Sequence[NDArray[np.float32]],
    clusters: Sequence[NDArray[np.intp]],
    *,
    quantiles: int = 50,
    min_cells: int = 20,
    reference: int = 0,
) -> list[NDArray[np.float32]]:
    """Give each factor, within each cluster, the reference's distribution (Welch et al. 2019; rliger).

    The quantiles of a dataset's cells are mapped piecewise linearly onto those of the reference's cells of
    the same cluster. Clusters with fewer than ``min_cells`` cells in either dataset stay as they are. Where
    quantiles of the dataset are tied at zero, they map onto the mean of the reference's; a factor that is
    constant in either cluster becomes 0, as in rliger. All cells are used, so nothing is random.

    Returns
    -------
    One cells × k matrix per dataset, float32; the reference is unchanged but for constant factors.
    """
    levels = np.linspace(0, 1, quantiles + 1)
    target = H[reference]
    aligned = [h.astype(np.float32, copy=True) for h in H]
    for h, cluster, result in zip(H, clusters, aligned, strict=True):
        for number in range(target.shape[1]):
            cells, model = cluster == number, clusters[reference] == number
            if min(cells.sum(), model.sum()) < min_cells:
                continue
            result[cells] = _map_quantiles(h[cells], target[model], levels)
    return aligned


def centroid_align(
    H: Sequence[NDArray[np.float32]], clusters: Sequence[NDArray[np.intp]], ridge: float = 1.0
) -> list[NDArray[np.float32]]:
    """Shift each cluster of each dataset onto the cluster's centroid over the datasets, by ridge regression.

    The loadings are divided by their length first. Within a cluster they are regressed on an intercept and
    one indicator per dataset, the indicators with penalty ``ridge``; the datasets' coefficients are
    subtracted (Korsunsky et al. 2019, the correction step of Harmony; rliger's centroidAlign).

    Returns
    -------
    One cells × k matrix per dataset, float32; values may be negative.
    """
    lengths = [np.linalg.norm(h, axis=1, keepdims=True) for h in H]
    unit = [h / np.where(length > 0, length, 1) for h, length in zip(H, lengths, strict=True)]
    aligned = [np.asarray(u, np.float64).copy() for u in unit]
    n = len(H)
    for number in range(H[0].shape[1]):
        members = [cluster == number for cluster in clusters]
        counts = np.array([member.sum() for member in members], np.float64)
        if (counts > 0).sum() < 2:
            continue
        sums = np.array(
            [u[member].sum(axis=0, dtype=np.float64) for u, member in zip(unit, members, strict=True)]
        )
        design = np.zeros((n + 1, n + 1))
        design[0, 0] = counts.sum()
        design[0, 1:] = design[1:, 0] = counts
        design[1:, 1:] = np.diag(counts + ridge)
        shift = np.linalg.lstsq(design, np.vstack([sums.sum(axis=0), sums]), rcond=None)[0][1:]
        for result, member, delta in zip(aligned, members, shift, strict=True):
            result[member] -= delta
    return [result.astype(np.float32) for result in aligned]


def _map_quantiles(
    values: NDArray[np.float32], target: NDArray[np.float32], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    have = np.quantile(values.astype(np.float64), levels, axis=0)
    want = np.quantile(target.astype(np.float64), levels, axis=0)
    mapped = np.zeros(values.shape)
    for factor in range(values.shape[1]):
        x, y = have[:, factor], want[:, factor]
        if x[0] == x[-1] or y[0] == y[-1]:
            continue
        zeros = x == 0
        if zeros.any():
            y = np.where(zeros, y[zeros].mean(), y)
        mapped[:, factor] = np.interp(values[:, factor], x, y)
    return mapped


def _nearest(H: NDArray[np.float32], k: int, seed: int) -> NDArray[np.intp]:
    if len(H) <= _EXACT_UP_TO:
        return nearest(H, H, k)
    return approximate_neighbours(H, k, seed).astype(np.intp)

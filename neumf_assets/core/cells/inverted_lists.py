"""Approximate nearest neighbours by inverted lists.

Points are halved at the median of their principal axis until lists of near ones are left. A point's neighbours
are sought, by all distances, in the lists whose centroids lie nearest to that of its own (the inverted file of
Jégou et al. 2011, without compression). Beside points and result only the points of some lists are in memory,
and a point takes the same time however many there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

LIST_POINTS = 512
PROBES = 32
_AXIS_POINTS = 5000


def approximate_neighbours(points: NDArray[np.float32], k: int, seed: int = 0) -> NDArray[np.int32]:
    """Find nearly all of the ``k`` nearest points (Euclidean) of every point, itself included.

    Parameters
    ----------
    points
        Points × dimensions, finite.
    k
        At most as many as there are points.
    seed
        Draws the points from which the axes are found.

    Returns
    -------
    numpy.ndarray
        Points × k positions, nearest first; the same on every run with one seed.
    """
    lists = point_lists(points, LIST_POINTS, seed)
    centroids = np.stack([points[own].mean(axis=0) for own in lists])
    near = nearest(centroids, centroids, min(PROBES, len(lists)))
    found = np.empty((len(points), k), np.int32)
    for own, probed in zip(lists, near, strict=True):
        candidates = np.concatenate([lists[number] for number in probed])
        if candidates.size < k:
            candidates = np.arange(len(points))
        found[own] = candidates[nearest(points[own], points[candidates], k)]
    return found


def point_lists(points: NDArray[np.float32], size: int, seed: int = 0) -> list[NDArray[np.intp]]:
    """Cut points into lists of at most ``size`` near ones, ascending; none has less than half of it."""
    rng = np.random.default_rng(seed)
    waiting, lists = [np.arange(len(points))], []
    # threads add their partial sums in any order, which would change the last bits of the axes
    with threadpool_limits(limits=1, user_api="blas"):
        while waiting:
            own = waiting.pop()
            if own.size <= size:
                lists.append(own)
                continue
            order = np.argpartition(_along_axis(points, own, rng), own.size // 2)
            waiting += [np.sort(own[order[: own.size // 2]]), np.sort(own[order[own.size // 2 :]])]
    return lists


def nearest(queries: NDArray[np.float32], references: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Find the ``k`` nearest references (Euclidean) of every query by all distances, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="euclidean").fit(references)
    return search.kneighbors(queries, return_distance=False)


def _along_axis(
    points: NDArray[np.float32], own: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Give the positions of some points along their principal axis."""
    drawn = own if own.size <= _AXIS_POINTS else np.sort(rng.choice(own, _AXIS_POINTS, replace=False))
    sample = points[drawn].astype(np.float64)
    sample -= sample.mean(axis=0)
    axis = np.linalg.eigh(sample.T @ sample)[1][:, -1]
    return points[own] @ axis

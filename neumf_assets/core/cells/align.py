"""Alignment of the datasets' cells in their common embedding, as far as it costs them nothing.

Harmony pulls datasets together whether they have cells of one kind or not. What tells the two apart needs no labels:
where cells of one kind meet, many of a cell's neighbours come to be of another dataset, and those of its own dataset
stay what they were; where different kinds are pushed into one another, they do not. And what a measurement does to
cells it does to all of them alike for a good part, while different kinds are pushed each its own way. A pass of Harmony
is kept as long as the share of neighbours that the datasets gain from each other is at least the share that cells lose
of those in their own, and a third of all moves is common to the cells of a dataset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from neumf_assets.core.cells.neighbours import (
    find_cross_neighbours,
    find_neighbours_of,
    projection,
    row_blocks,
)
from neumf_assets.core.cells.settings import AlignSettings
from neumf_assets.core.errors import NeumfError

GUIDES = 8
FEWEST_OF_DATASET = 100
WATCHED_CELLS = 2000
"""Cells whose neighbours tell what a pass did."""
WATCHED_NEIGHBOURS = 20
LEAST_COMMON = 1 / 3
"""Of the squared moves. With an effect of the dataset it has been 0.6 to 0.9, without a kind in common 0.15 to 0.35."""


@dataclass(frozen=True)
class Alignment:
    """Cells before or after an alignment, and what it did.

    Parameters
    ----------
    embedding
        Cells × dimensions, float32.
    passes
        Passes of Harmony that were kept.
    same_dataset
        Share of the cells' nearest neighbours that are of their own dataset: before, and after each pass that was made.
    own_kept
        Share of the nearest neighbours in the own dataset that are still among them, likewise.
    common
        Share of the squared moves that is common to all cells of a dataset, after each pass. The last values may be of
        a pass that was taken back.
    """

    embedding: np.ndarray
    passes: int = 0
    same_dataset: tuple[float, ...] = ()
    own_kept: tuple[float, ...] = ()
    common: tuple[float, ...] = ()


def harmony_align(
    embedding: np.ndarray, datasets: np.ndarray, settings: AlignSettings | None = None
) -> Alignment:
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
    Alignment
        With the embedding as it was where there is one dataset only.

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
        return Alignment(points.astype(np.float32))
    if len(points) > settings.max_cells:
        return _following(points, codes, settings)
    return _aligned(points, codes, settings)


def _following(points: np.ndarray, codes: np.ndarray, settings: AlignSettings) -> Alignment:
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
    aligned = _aligned(points[sample], codes[sample], settings)
    moved = aligned.embedding - points[sample]
    for code in np.unique(codes):
        own, guides = np.flatnonzero(codes == code), codes[sample] == code
        for rows in row_blocks(own.size):
            near, weights = projection(found[own[rows]], points[sample[guides]], GUIDES, "euclidean")
            found[own[rows]] += np.einsum("nk,nkd->nd", weights, moved[guides][near])
    found[sample] = aligned.embedding
    return replace(aligned, embedding=found)


def _drawn(cells: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(
        cells, min(cells.size, max(FEWEST_OF_DATASET, round(share * cells.size))), replace=False
    )


def _aligned(points: np.ndarray, codes: np.ndarray, settings: AlignSettings) -> Alignment:
    """Make passes of Harmony, each from the one before, as long as they are kept."""
    watch, start, passes = _Watch(points, codes, settings.seed), points, 0
    same, kept, common = [watch.same_dataset(points)], [1.0], []
    for _ in range(settings.passes):
        moved = _harmony(points, codes, settings)
        same.append(watch.same_dataset(moved))
        kept.append(watch.own_kept(moved))
        common.append(_common_share(moved - start, codes))
        gains = same[-2] - same[-1] >= kept[-2] - kept[-1] and common[-1] >= LEAST_COMMON
        if settings.guarded and not gains:
            break
        points, passes = moved, passes + 1
    return Alignment(points.astype(np.float32), passes, tuple(same), tuple(kept), tuple(common))


def _common_share(moves: np.ndarray, codes: np.ndarray) -> float:
    """Share of the squared moves that is the same for all cells of a dataset; 1 where nothing moves."""
    whole = float(np.square(moves).sum())
    alike = sum(
        float(np.square(moves[codes == code].mean(axis=0)).sum() * (codes == code).sum())
        for code in np.unique(codes)
    )
    return alike / whole if whole else 1.0


class _Watch:
    """Neighbours of some cells, drawn by seed, as they were before."""

    def __init__(self, points: np.ndarray, codes: np.ndarray, seed: int) -> None:
        drawn = np.random.default_rng([seed, 1]).permutation(len(points))[:WATCHED_CELLS]
        self._cells, self._codes = np.sort(drawn), codes
        self._before = self._own(points)

    def same_dataset(self, points: np.ndarray) -> float:
        """Share of the cells' nearest neighbours that are of their own dataset."""
        near = find_neighbours_of(self._cells, points, WATCHED_NEIGHBOURS).indices
        return float((self._codes[near] == self._codes[self._cells][:, None]).mean())

    def own_kept(self, points: np.ndarray) -> float:
        """Share of the cells' nearest neighbours in their own dataset that are still among them."""
        shares = [
            len(set(before) & set(now)) / len(before)
            for before, now in zip(self._before, self._own(points), strict=True)
            if len(before)
        ]
        return float(np.mean(shares)) if shares else 1.0

    def _own(self, points: np.ndarray) -> list[list[int]]:
        """The nearest neighbours of each watched cell in its own dataset."""
        found: dict[int, list[int]] = {}
        for code in np.unique(self._codes):
            own = np.flatnonzero(self._codes == code)
            cells = self._cells[self._codes[self._cells] == code]
            near = find_cross_neighbours(points[cells], points[own], WATCHED_NEIGHBOURS + 1)
            for cell, row in zip(cells, own[near], strict=True):
                found[int(cell)] = [int(other) for other in row if other != cell][:WATCHED_NEIGHBOURS]
        return [found[int(cell)] for cell in self._cells]


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

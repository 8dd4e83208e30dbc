"""LIGER's own scores of an integration: alignment (datasets mixed?) and agreement (structure kept?)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from neumf_assets.core.errors import NeumfError


class Scaled(Protocol):
    """A matrix of which some rows are looked at: in memory, sparse or not, or on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells × genes."""

    def __getitem__(self, cells: Any, /) -> Any:
        """Return some cells, given in ascending order."""


def alignment(
    embedding: NDArray[np.floating],
    dataset: NDArray[Any],
    *,
    k: int | None = None,
    max_cells: int = 5000,
    seed: int = 0,
) -> float | None:
    """Measure how evenly datasets mix among nearest neighbours: 1 = as by chance, 0 = not at all.

    ``1 − (x̄ − k/N) / (k − k/N)`` with x̄ the mean number of a cell's k nearest neighbours from its own
    dataset, over the same number of cells of each of the N datasets (Butler et al. 2018, Nat Biotechnol
    36:411; rliger's calcAlignment). Small excesses above 1 come from sampling.

    Parameters
    ----------
    embedding
        Cells × dimensions, all datasets; neighbours are found by cosine.
    dataset
        Dataset of each cell.
    k
        Neighbours (None: 1 % of the compared cells, at least 10).
    max_cells
        At most this many cells of each dataset are drawn, by ``seed``.

    Returns
    -------
    None with fewer than two datasets or too few cells.
    """
    codes = np.unique(dataset, return_inverse=True)[1]
    n = int(codes.max(initial=-1)) + 1
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    each = min(int(np.bincount(codes).min()), max_cells)
    drawn = np.concatenate([rng.permutation(np.flatnonzero(codes == code))[:each] for code in range(n)])
    k = k or max(10, drawn.size // 100)
    if k >= drawn.size:
        return None
    near = _neighbours(_unit(embedding[drawn]), k)
    same = (codes[drawn][near] == codes[drawn][:, None]).sum(axis=1).mean()
    return float(1 - (same - k / n) / (k - k / n))


def agreement(
    data: Sequence[Scaled],
    aligned: Sequence[NDArray[np.floating]],
    *,
    k: int = 15,
    dimensions: int = 40,
    max_cells: int = 3000,
    seed: int = 0,
) -> float | None:
    """Measure how much of each dataset's own neighbourhoods survives the integration (0 to 1).

    Mean Jaccard index of a cell's k nearest neighbours in its dataset's principal components and in the
    aligned embedding, cells of one dataset at a time (Welch et al. 2019; rliger's calcAgreement).

    Parameters
    ----------
    data
        Per dataset, cells × genes as they were before integration (for LIGER: scaled).
    aligned
        Per dataset, cells × dimensions of the integrated embedding; neighbours by cosine.
    dimensions
        Principal components, at most.
    max_cells
        At most this many cells of each dataset are compared, drawn by ``seed``.

    Returns
    -------
    None when no dataset has more than k cells.
    """
    scores: list[NDArray[np.float64]] = []
    for number, (matrix, embedding) in enumerate(zip(data, aligned, strict=True)):
        if matrix.shape[0] != len(embedding):
            raise NeumfError(f"{matrix.shape[0]} cells before and {len(embedding)} after integration.")
        rng = np.random.default_rng([seed, number])
        cells = np.sort(rng.permutation(matrix.shape[0])[:max_cells])
        if cells.size <= k:
            continue
        before = _neighbours(_components(matrix[cells], dimensions, seed), k)
        after = _neighbours(_unit(embedding[cells]), k)
        shared = (before[:, :, None] == after[:, None, :]).sum(axis=(1, 2))
        scores.append(shared / (2 * k - shared))
    return float(np.concatenate(scores).mean()) if scores else None


def _components(
    matrix: sp.csr_matrix | NDArray[np.floating], dimensions: int, seed: int
) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA

    whole: Any = matrix
    dense = np.asarray(whole.toarray() if sp.issparse(whole) else whole, dtype=np.float32)
    number = min(dimensions, dense.shape[0] - 1, dense.shape[1])
    return PCA(number, svd_solver="randomized", random_state=seed).fit_transform(dense)


def _neighbours(points: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Return the k nearest other cells (Euclidean)."""
    from sklearn.neighbors import NearestNeighbors

    return np.asarray(NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[1])


def _unit(points: NDArray[np.floating]) -> NDArray[np.floating]:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(length > 0, length, 1)

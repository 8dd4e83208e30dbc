"""Doublets: barcodes that hold two cells, told by how much they resemble sums of two others.

The method is Scrublet's (Wolock, Lopez and Klein 2019, doi:10.1016/j.cels.2018.11.005): pairs of cells are added,
cells and sums are laid into the space of the cells' principal components, and a cell scores high whose neighbours
are sums. For one dataset at a time: a cell of another sample cannot have shared its droplet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.progress import Progress, silent

FEWEST_CELLS = 100
"""Cells that it takes to tell sums from cells."""
CHUNK = 8000
"""Cells that are judged together, drawn at random: time and memory then grow with the cells only."""
_SUMS = 2
_UNLIKE_SUMS = 0.25
_SUMS_JUDGED = 2000
"""Sums whose own neighbours are looked at: enough to know their quantiles."""
_GENES = 1500
_COMPONENTS = 30
_PER_CELL = 0.008 / 1000
"""Share of doublets for each cell that is loaded on a droplet instrument: about 0.8 % for every thousand cells."""
_MOST = 0.25
_ROWS = 2048


@dataclass(frozen=True)
class Doublets:
    """How much each cell resembles a sum of two.

    Attributes
    ----------
    score
        Share of sums among its neighbours, turned into the odds of a doublet, 0 to 1.
    threshold
        Above which score a cell is called a doublet: no more are than expected, and only such as have more sums
        among their neighbours than a quarter of the sums themselves, which also are of two cells of one type.
    called
        Which cells are.
    expected
        Share of doublets that was expected.
    """

    score: NDArray[np.float64]
    threshold: float
    called: NDArray[np.bool_]
    expected: float


def find_doublets(
    take: Callable[[NDArray[np.intp]], sparse.csr_matrix],
    n_cells: int,
    *,
    rate: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Doublets | None:
    """Score and call the doublets of one dataset.

    Parameters
    ----------
    take
        Gives the counts of some cells (positions in ascending order), cells × genes.
    n_cells
        How many cells there are.
    rate
        Expected share of doublets; None: 0.8 % for every thousand cells, a quarter at most.
    seed
        Of the pairs, and of the parts that large datasets are judged in.

    Returns
    -------
    None where there are fewer than 100 cells.
    """
    if n_cells < FEWEST_CELLS:
        return None
    expected = min(_MOST, _PER_CELL * n_cells) if rate is None else rate
    rng = np.random.default_rng(seed)
    chunks = np.array_split(rng.permutation(n_cells), -(-n_cells // CHUNK))
    share, of_sums = np.full(n_cells, np.nan), []
    for number, chunk in enumerate(chunks):
        progress("doublets", number, len(chunks))
        cells = np.sort(chunk)
        share[cells], sums = _shares_of_sums(take(cells), rng)
        of_sums.append(sums)
    progress("doublets", len(chunks), len(chunks))
    like_sums = float(np.quantile(np.concatenate(of_sums), _UNLIKE_SUMS))
    threshold = max(float(np.quantile(share, 1 - expected)), like_sums)
    called = share > threshold
    return Doublets(
        _posterior(share, expected), float(_posterior(np.array(threshold), expected)), called, expected
    )


def _shares_of_sums(
    counts: sparse.csr_matrix, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of sums among the neighbours of each cell, and of each sum of a pair of cells."""
    n = counts.shape[0]
    pairs = rng.integers(0, n, (_SUMS * n, 2))
    totals = np.maximum(np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel(), 1.0)
    scale = float(np.median(totals))
    used = _overdispersed(counts, totals, scale)
    cells = counts[:, used].toarray().astype(np.float32)
    own = np.log1p(cells * (scale / totals)[:, None].astype(np.float32))
    middle, width = own.mean(axis=0), own.std(axis=0)
    width[width == 0] = 1.0
    own -= middle
    own /= width
    values, vectors = np.linalg.eigh(own.T @ own)
    axes = vectors[:, np.argsort(values)[::-1][: min(_COMPONENTS, n - 1, used.size)]]
    points = [own @ axes]
    for start in range(0, len(pairs), _ROWS):
        first, second = pairs[start : start + _ROWS].T
        sums = cells[first] + cells[second]
        sums *= (scale / (totals[first] + totals[second]))[:, None].astype(np.float32)
        points.append((np.log1p(sums, out=sums) - middle) / width @ axes)
    laid = np.ascontiguousarray(np.vstack(points), dtype=np.float32)
    k = max(2, round(0.5 * np.sqrt(n) * (1 + _SUMS)))
    found = _nearest(laid, min(k, len(laid) - 1), min(len(laid), n + _SUMS_JUDGED))
    share = ((found >= n).sum(axis=1) + 1) / (found.shape[1] + 2)
    return share[:n], share[n:]


def _overdispersed(counts: sparse.csr_matrix, totals: NDArray[np.float64], scale: float) -> NDArray[np.intp]:
    """Genes that vary most beyond counting noise, among those that some cells show."""
    n = counts.shape[0]
    scaled = sparse.csr_matrix(
        (counts.data * np.repeat(scale / totals, np.diff(counts.indptr)), counts.indices, counts.indptr),
        shape=counts.shape,
    )
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    square = np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel()
    seen = np.bincount(counts.indices, minlength=counts.shape[1])
    usable = np.flatnonzero(seen >= max(3, n // 200))
    if not usable.size:
        usable = np.flatnonzero(seen > 0)
    excess = (square[usable] - mean[usable] ** 2) / np.maximum(mean[usable], 1e-12)
    return np.sort(usable[np.argsort(excess)[::-1][:_GENES]])


def _nearest(points: NDArray[np.float32], k: int, judged: int) -> NDArray[np.intp]:
    """The ``k`` nearest points of each of the first points, itself left out."""
    squares = (points * points).sum(axis=1)
    found = np.empty((judged, k), np.int64)
    for start in range(0, judged, _ROWS):
        stop = min(start + _ROWS, judged)
        distances = squares - 2.0 * (points[start:stop] @ points.T)
        distances[np.arange(stop - start), np.arange(start, stop)] = np.inf
        found[start:stop] = np.argpartition(distances, k - 1, axis=1)[:, :k]
    return found


def _posterior(share: NDArray[np.float64], expected: float) -> NDArray[np.float64]:
    """Scrublet's likelihood of a doublet, given the share of sums among the neighbours."""
    odds = share * expected / _SUMS
    return odds / (1 - expected - share * (1 - expected - expected / _SUMS))

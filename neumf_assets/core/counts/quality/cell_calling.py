"""Which barcodes of a raw droplet matrix are cells, and what the ambient RNA of the others looks like.

As EmptyDrops (Lun et al. 2019, doi:10.1186/s13059-019-1662-y): barcodes of few counts give the ambient profile;
barcodes above the knee are cells; those between are tested against the profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import gammaln

from neumf_assets.core.counts.quality.figures import Blocks
from neumf_assets.core.errors import NeumfError

Mask = NDArray[np.bool_]
DRAWS = 10_000
_LEAST_AMBIENT = 1000
"""Counts that an ambient profile has to rest on."""
_ORDMAG = 10.0


@dataclass(frozen=True)
class CalledCells:
    """Which barcodes are cells.

    Attributes
    ----------
    cells
        For each barcode, whether it is one.
    knee
        Counts from which on every barcode is a cell.
    lower
        Counts up to which no barcode is one: these make the ambient profile.
    tested, found
        How many barcodes between the two were tested, and found to be cells.
    ambient
        Share of each gene in the ambient profile; sums to 1.
    """

    cells: Mask
    knee: float
    lower: int
    tested: int
    found: int
    ambient: NDArray[np.float64]


def call_cells(
    blocks: Blocks,
    shape: tuple[int, int],
    totals: NDArray[np.float64],
    *,
    lower: int = 100,
    fdr: float = 0.01,
    expected_cells: int | None = None,
    seed: int = 0,
) -> CalledCells:
    """Call cells.

    Parameters
    ----------
    blocks, shape
        The counts, barcodes × genes, and their size.
    totals
        Counts of each barcode.
    lower
        Most counts of a barcode that is surely none.
    fdr
        Share of false cells among those found by the test (Benjamini and Hochberg).
    expected_cells
        How many cells were loaded: the knee is then a tenth of the 99th percentile of so many barcodes.
    seed
        Of the draws that give the test its p values.

    Raises
    ------
    NeumfError
        Where too few counts lie below ``lower`` to know the ambient profile.
    """
    below = totals <= lower
    counts = np.zeros(shape[1])
    for rows, X in blocks():
        counts += np.asarray(X[below[rows]].sum(axis=0, dtype=np.float64)).ravel()
    ambient = ambient_profile(counts)
    knee = _knee(totals[totals > lower], expected_cells)
    tested = (totals > lower) & (totals < knee)
    found = np.zeros(totals.size, bool)
    if tested.any():
        scores = np.zeros(totals.size)
        log_share = np.log(np.maximum(ambient, np.finfo(float).tiny))
        for rows, X in blocks():
            here = tested[rows]
            scores[rows][here] = _log_likelihood(X[here], log_share)
        p = _p_values(scores[tested], totals[tested].astype(np.int64), ambient, seed)
        found[tested] = _benjamini_hochberg(p) <= fdr
    return CalledCells((totals >= knee) | found, knee, lower, int(tested.sum()), int(found.sum()), ambient)


def ambient_profile(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of genes among the counts of empty droplets, with a share for genes that were not seen (Good-Turing).

    Raises
    ------
    NeumfError
        Where there are too few counts.
    """
    total = counts.sum()
    if total < _LEAST_AMBIENT:
        raise NeumfError(
            f"There are only {total:.0f} counts in droplets without a cell, too few to know the ambient RNA. "
            "Give the filtered matrix, or raise qc.call_lower, or set qc.call_cells: off."
        )
    unseen = counts == 0
    rest = min(0.5, max(1.0, float((counts == 1).sum())) / total) if unseen.any() else 0.0
    shares = counts / total * (1 - rest)
    shares[unseen] = rest / max(1, int(unseen.sum()))
    return shares / shares.sum()


def _knee(totals: NDArray[np.float64], expected_cells: int | None) -> float:
    """Where the curve of totals by rank turns down: the point farthest from the line between its ends (logarithms)."""
    ranked = np.sort(totals)[::-1]
    if not ranked.size:
        return np.inf
    if expected_cells:
        top = ranked[: min(expected_cells, ranked.size)]
        return float(np.quantile(top, 0.99)) / _ORDMAG
    x, y = np.log10(np.arange(1, ranked.size + 1)), np.log10(ranked)
    if x[-1] == 0 or y[0] == y[-1]:
        return float(ranked[-1])
    above = y - (y[0] + (y[-1] - y[0]) * x / x[-1])
    return float(ranked[int(np.argmax(above))])


def _log_likelihood(X: sparse.csr_matrix, log_share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multinomial log likelihood of each row, without what depends on its total alone."""
    each = X.data * log_share[X.indices] - gammaln(X.data + 1.0)
    ends = np.concatenate([[0.0], np.cumsum(each)])
    return ends[X.indptr[1:]] - ends[X.indptr[:-1]]


def _p_values(
    scores: NDArray[np.float64], totals: NDArray[np.int64], ambient: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Share of draws from the ambient profile, of the same total, that are no likelier than the barcode."""
    order = np.lexsort((scores, totals))
    wanted, first = np.unique(totals[order], return_index=True)
    keep, other = _alias_table(ambient)
    log_share = np.log(np.maximum(ambient, np.finfo(float).tiny))
    steps = _compiled()(
        scores[order],
        wanted,
        np.append(first, scores.size),
        keep,
        other,
        log_share,
        DRAWS,
        np.random.default_rng(seed),
    )
    p = np.empty(scores.size)
    p[order] = (np.cumsum(steps[:-1]) + 1) / (DRAWS + 1)
    return p


def _alias_table(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Walker's table, by which a gene is drawn in two looks: the chance to keep it, and what is taken else."""
    keep, other = shares * shares.size, np.arange(shares.size)
    small, large = list(np.flatnonzero(keep < 1)), list(np.flatnonzero(keep >= 1))
    while small and large:
        less, more = small.pop(), large[-1]
        other[less] = more
        keep[more] -= 1 - keep[less]
        if keep[more] < 1:
            small.append(large.pop())
    return np.minimum(keep, 1.0), other


@cache
def _compiled() -> Any:
    """The draws: a droplet grows count by count, and is compared with the barcodes of each total that it reaches.

    The result is what to add, from one barcode to the next (sorted by total and score), to the number of draws
    that are no likelier than it.
    """
    import numba

    @numba.njit(cache=True)
    def drawn(  # type: ignore[no-untyped-def]
        scores, totals, first, keep, other, log_share, draws, rng
    ):  # pragma: no cover - compiled
        steps = np.zeros(scores.size + 1, np.int64)
        counts = np.zeros(keep.size, np.int64)
        logs = np.log(np.arange(1, totals[-1] + 2).astype(np.float64))
        genes = np.empty(totals[-1], np.int64)
        for _ in range(draws):
            likelihood, held = 0.0, 0
            for at in range(totals.size):
                while held < totals[at]:
                    gene = rng.integers(0, keep.size)
                    if rng.random() >= keep[gene]:
                        gene = other[gene]
                    genes[held] = gene
                    likelihood += log_share[gene] - logs[counts[gene]]
                    counts[gene] += 1
                    held += 1
                own = scores[first[at] : first[at + 1]]
                equal = likelihood - 1e-9 * (1 + abs(likelihood))  # sums in another order round otherwise
                place = first[at] + np.searchsorted(own, equal)
                steps[place] += 1
                steps[first[at + 1]] -= 1
            for at in range(held):
                counts[genes[at]] = 0
        return steps

    return drawn


def _benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(p)[::-1]
    ranks = np.arange(p.size, 0, -1)
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum.accumulate(np.minimum(1.0, p[order] * p.size / ranks))
    return adjusted

"""Honest hold-outs of count matrices: binomial thinning, and one observed gene left out of every cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from neumf_assets.core.errors import BadSettings


@dataclass(frozen=True)
class Thinned:
    """Counts split molecule by molecule into two independent parts.

    Parameters
    ----------
    train, test
        Cells x genes, non-zeros only; ``train + test`` are the original counts.
    train_share
        Probability with which a molecule went to ``train``.
    """

    train: csr_matrix
    test: csr_matrix
    train_share: float

    @property
    def ratio(self) -> float:
        """Expected count of the test part for each count of the train part: 0.25 at a share of 0.8."""
        return (1 - self.train_share) / self.train_share


def thin(counts: csr_matrix, train_share: float = 0.8, seed: int = 0) -> Thinned:
    """Split every count at random: each molecule goes to the train part with probability ``train_share``.

    Where a count is Poisson given its mean, the parts are independent Poisson counts whose means stand in the
    ratio of the shares, so a model of the train part can be judged on the test part without having seen any
    of it (Batson, Royer and Webber 2019, "Molecular cross-validation"; Neufeld et al. 2024, "Data thinning").

    Parameters
    ----------
    counts
        Cells x genes, whole numbers.
    train_share
        Between 0 and 1, both excluded.
    seed
        Seed of the split.

    Raises
    ------
    BadSettings
        Where the share is out of range, or the counts are negative or not whole.
    """
    if not 0 < train_share < 1:
        raise BadSettings(f"train_share: {train_share} is not between 0 and 1")
    counts = _canonical(counts)
    whole = counts.data.astype(np.int64)
    if whole.size and (whole.min() < 0 or not np.array_equal(whole, counts.data)):
        raise BadSettings("counts: thinning needs whole, non-negative counts; evaluate the raw matrix")
    kept = np.random.default_rng(seed).binomial(whole, train_share)
    return Thinned(_with_data(counts, kept), _with_data(counts, whole - kept), train_share)


@dataclass(frozen=True)
class LeftOut:
    """One observed gene for each cell that the model must not have seen there.

    Parameters
    ----------
    train
        Cells x genes without the left-out entries.
    cells, genes
        Positions of the left-out entries, ascending by cell, at most one for a cell.
    """

    train: csr_matrix
    cells: NDArray[np.intp]
    genes: NDArray[np.intp]


def leave_one_out(counts: csr_matrix, seed: int = 0) -> LeftOut:
    """Remove one observed gene from every cell that has at least two, drawn uniformly (He et al. 2017, 4.1).

    Parameters
    ----------
    counts
        Cells x genes.
    seed
        Seed of the draw.
    """
    counts = _canonical(counts)
    cells, position = _draw_entry(counts, np.random.default_rng(seed), at_least=2)
    kept = counts.data.copy()
    kept[position] = 0
    return LeftOut(_with_data(counts, kept), cells, counts.indices[position].astype(np.intp))


def unseen_in_train(thinned: Thinned, seed: int = 0) -> LeftOut:
    """Draw for each cell one observed gene of which thinning left nothing in the train part.

    So one training on the train part serves the held-out deviance and the ranking alike. Cells without such a
    gene are absent. A gene with count ``y`` qualifies with probability ``(1 - train_share)^y``, so these are
    genes of low counts, harder to rank than those of :func:`leave_one_out`.

    Parameters
    ----------
    thinned
        The split.
    seed
        Seed of the draw among a cell's genes.
    """
    seen = thinned.train.astype(bool)
    unseen = _canonical(thinned.test.astype(bool) > seen)
    cells, position = _draw_entry(unseen, np.random.default_rng(seed), at_least=1)
    return LeftOut(thinned.train, cells, unseen.indices[position].astype(np.intp))


def _draw_entry(
    counts: csr_matrix, rng: np.random.Generator, at_least: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the cells with ``at_least`` entries, and the position in ``data`` of one entry of each."""
    lengths = np.diff(counts.indptr)
    cells = np.flatnonzero(lengths >= at_least)
    return cells, counts.indptr[cells] + rng.integers(lengths[cells])


def _canonical(counts: csr_matrix) -> csr_matrix:
    """Return a copy with sorted, unique, non-zero entries, so that a seed always means the same draw."""
    counts = csr_matrix(counts, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _with_data(counts: csr_matrix, data: NDArray[np.generic]) -> csr_matrix:
    """Return a matrix of the same structure with other values, zeros removed."""
    result = csr_matrix(
        (data.astype(counts.dtype), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape
    )
    result.eliminate_zeros()
    return result

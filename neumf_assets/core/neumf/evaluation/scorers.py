"""Scores of predicted means against what was held out, taken up block by block."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import xlogy

from neumf_assets.core.neumf.evaluation.baselines import Block

CALIBRATION_EDGES = np.logspace(-5, 4, 37)


class Scorer(Protocol):
    """Takes predictions block by block."""

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predictions of the cells ``rows``."""


class HeldOutDeviance:
    """Mean Poisson deviance of the entries of a sparse count matrix under predicted means.

    ``2 (y log(y / mu) - y + mu)`` over all entries, zeros included: from the non-zeros and the sum of means.

    Parameters
    ----------
    test
        Cells x genes.
    ratio
        What the predicted means are multiplied by to be means of ``test``.
    """

    def __init__(self, test: csr_matrix, ratio: float = 1.0) -> None:
        self.test, self.ratio = test.tocsr(), ratio
        self._sum, self._entries = 0.0, 0

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predicted means of the cells ``rows``."""
        part = self.test[rows]
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        y = part.data.astype(np.float64)
        mu = block[row, part.indices].astype(np.float64) * self.ratio
        self._sum += 2 * float((xlogy(y, y / mu) - y).sum() + self.ratio * block.sum(dtype=np.float64))
        self._entries += block.size

    @property
    def value(self) -> float:
        """Deviance of an entry, averaged over all entries."""
        return self._sum / max(self._entries, 1)


class SquaredError:
    """Mean squared error over all entries of a sparse count matrix under predicted means.

    Parameters
    ----------
    test
        Cells x genes.
    ratio
        What the predicted means are multiplied by to be means of ``test``.
    """

    def __init__(self, test: csr_matrix, ratio: float = 1.0) -> None:
        self.test, self.ratio = test.tocsr(), ratio
        self._sum, self._entries = 0.0, 0

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predicted means of the cells ``rows``."""
        difference = self.test[rows].toarray() - self.ratio * block.astype(np.float64)
        self._sum += float((difference**2).sum())
        self._entries += block.size

    @property
    def value(self) -> float:
        """Squared error of an entry, averaged over all entries."""
        return self._sum / max(self._entries, 1)


@dataclass(frozen=True)
class CalibrationBin:
    """Entries whose predicted means lie close together.

    Parameters
    ----------
    entries
        Their number.
    predicted, observed
        Mean prediction and mean count.
    standard_error
        Of ``observed``, for Poisson counts.
    """

    entries: int
    predicted: float
    observed: float
    standard_error: float


class Calibration:
    """Observed against predicted mean, in bins of the predicted mean (four for each power of ten)."""

    def __init__(self, test: csr_matrix, ratio: float = 1.0) -> None:
        self.test, self.ratio = test.tocsr(), ratio
        self._entries, self._predicted, self._observed = np.zeros((3, CALIBRATION_EDGES.size + 1))

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predicted means of the cells ``rows``."""
        part = self.test[rows]
        mu = block * np.float32(self.ratio)
        bins = np.searchsorted(CALIBRATION_EDGES.astype(np.float32), mu.ravel())
        n = CALIBRATION_EDGES.size + 1
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        self._entries += np.bincount(bins, minlength=n)
        self._predicted += np.bincount(bins, mu.ravel(), minlength=n)
        self._observed += np.bincount(bins[row * block.shape[1] + part.indices], part.data, minlength=n)

    @property
    def bins(self) -> list[CalibrationBin]:
        """The bins that hold entries, lowest prediction first."""
        return [
            CalibrationBin(int(n), float(predicted / n), float(observed / n), float(np.sqrt(observed) / n))
            for n, predicted, observed in zip(self._entries, self._predicted, self._observed, strict=True)
            if n
        ]


class TruthError:
    """How far predicted means are from known true ones (simulated counts).

    Parameters
    ----------
    means
        True means, cells x genes.
    """

    def __init__(self, means: NDArray[np.floating]) -> None:
        self.means = means
        self._moments = np.zeros(5)
        self._divergence, self._entries = 0.0, 0

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predicted means of the cells ``rows``."""
        truth, mu = self.means[rows].astype(np.float64), block.astype(np.float64)
        x, y = np.log(truth), np.log(mu)
        self._moments += [x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
        self._divergence += 2 * float((truth * (x - y) - truth + mu).sum())
        self._entries += block.size

    @property
    def correlation(self) -> float:
        """Pearson correlation of predicted and true log means over all entries."""
        x, y, xx, yy, xy = self._moments / self._entries
        return float((xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y)))

    @property
    def deviance(self) -> float:
        """Mean Poisson deviance of the predicted from the true means; 0 for the truth."""
        return self._divergence / self._entries


def score_blocks(blocks: Iterable[Block], scorers: list[Scorer]) -> float:
    """Hand every block to every scorer; return the seconds that training and prediction took."""
    seconds, begin = 0.0, time.perf_counter()
    for rows, block in blocks:
        seconds += time.perf_counter() - begin
        for scorer in scorers:
            scorer.add(rows, block)
        begin = time.perf_counter()
    return seconds + time.perf_counter() - begin

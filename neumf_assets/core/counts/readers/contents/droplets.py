"""Whether the barcodes of a matrix are cells, or all droplets that were made."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

_logger = logging.getLogger(__name__)
UNFILTERED = "background_barcodes"
"""Note of a raw droplet matrix: how many of its barcodes hold next to nothing."""
_FEWEST_GENES = 10
_MANY = 5000
_MOST = 0.5
_SURELY_EMPTY = 100
_FEWEST = 1000
_CELLS = 50
_DEEPER = 20.0


@dataclass
class Droplets:
    """Counts barcodes, and those that hold next to nothing.

    A matrix is taken for a raw one where most of many barcodes show fewer than ten genes; or where most have no
    more than 100 counts while some (the fiftieth of them) have twenty times as many as is usual: cells that are
    only sequenced shallowly differ less among each other.
    """

    nearly_empty: int = 0
    _totals: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, X: sparse.csr_matrix) -> None:
        """Take up some barcodes (rows)."""
        self.nearly_empty += int((np.diff(X.indptr) < _FEWEST_GENES).sum())
        self._totals.append(np.asarray(X.sum(axis=1, dtype=np.float64)).ravel())

    @property
    def barcodes(self) -> int:
        """How many there are."""
        return sum(own.size for own in self._totals)

    @property
    def background(self) -> int:
        """How many barcodes are most likely no cells; 0 where the matrix is none of all droplets."""
        if self.barcodes >= _MANY and self.nearly_empty > _MOST * self.barcodes:
            return self.nearly_empty
        totals = np.concatenate(self._totals) if self._totals else np.zeros(0)
        low = totals <= _SURELY_EMPTY
        if totals.size < _FEWEST or low.sum() <= _MOST * totals.size:
            return 0
        high = np.partition(totals, totals.size - _CELLS)[totals.size - _CELLS]
        return int(low.sum()) if high >= _DEEPER * max(1.0, float(np.median(totals))) else 0

    def say(self, file: str) -> None:
        """Warn where the matrix looks raw."""
        if found := self.background:
            _logger.warning(
                "%s: looks like a raw, unfiltered droplet matrix: %d of %d barcodes hold next to nothing, which is "
                "background and no cells. Which barcodes are cells is found by quality control (qc.call_cells)",
                file,
                found,
                self.barcodes,
            )

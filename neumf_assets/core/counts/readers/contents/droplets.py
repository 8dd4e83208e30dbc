"""Whether the barcodes of a matrix are cells, or all droplets that were made."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy import sparse

_logger = logging.getLogger(__name__)
_FEWEST_GENES = 10
_MANY = 5000
_MOST = 0.5


@dataclass
class Droplets:
    """Counts barcodes, and those that hold next to nothing."""

    barcodes: int = 0
    nearly_empty: int = 0

    def add(self, X: sparse.csr_matrix) -> None:
        """Take up some barcodes (rows)."""
        self.barcodes += X.shape[0]
        self.nearly_empty += int((np.diff(X.indptr) < _FEWEST_GENES).sum())

    @property
    def unfiltered(self) -> bool:
        """Whether most barcodes are background, as in a raw matrix."""
        return self.barcodes >= _MANY and self.nearly_empty > _MOST * self.barcodes

    def say(self, file: str) -> None:
        """Warn where the matrix looks raw."""
        if self.unfiltered:
            _logger.warning(
                "%s: looks like a raw, unfiltered droplet matrix: %d of %d barcodes show fewer than %d genes, which "
                "is background and no cells. Give the filtered matrix, or call cells first",
                file,
                self.nearly_empty,
                self.barcodes,
                _FEWEST_GENES,
            )

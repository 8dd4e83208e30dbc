"""The expression matrix that the factors stand for, ``H_i (W + V_i)``, in blocks of cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def reconstruct(
    H: NDArray[np.float32],
    loadings: NDArray[np.float32],
    *,
    row_factor: NDArray[np.floating] | None = None,
    column_factor: NDArray[np.floating] | None = None,
    block_cells: int = 5000,
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield rows and their part of ``H × loadings``, never more than ``block_cells`` cells at a time.

    Parameters
    ----------
    H
        Cells × k.
    loadings
        k × genes: ``W + V_i`` for the dataset's own expression, ``W`` for the part shared by all datasets.
    row_factor, column_factor
        Per cell and per gene, multiplied in (for instance to undo normalisation and scaling).
    """
    if column_factor is not None:
        loadings = (loadings * column_factor).astype(np.float32)
    for start in range(0, len(H), block_cells):
        rows = slice(start, min(start + block_cells, len(H)))
        block = H[rows] @ loadings
        if row_factor is not None:
            block *= row_factor[rows, None].astype(np.float32)
        yield rows, block

"""Refusal of counts, names and datasets that cannot be trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neumf_assets.core.errors import BadSettings


def check_values(values: NDArray[np.generic]) -> None:
    """Refuse counts that are negative or not finite.

    Raises
    ------
    BadSettings
        Where there are some.
    """
    if values.size and (values.min() < 0 or not np.isfinite(values).all()):
        raise BadSettings("counts: a negative or non-finite entry; give raw counts")


def check_labels(
    shape: tuple[int, int],
    gene_names: NDArray[np.str_] | list[str],
    cell_names: NDArray[np.str_] | list[str],
    dataset: NDArray[np.intp],
    dataset_names: list[str],
) -> None:
    """Refuse names and datasets that don't belong to the counts.

    Raises
    ------
    BadSettings
        Where lengths differ, or dataset indices leave one out.
    """
    if len(cell_names) != shape[0] or len(gene_names) != shape[1]:
        raise BadSettings(
            f"names: {len(cell_names)} cells and {len(gene_names)} genes are named, counts are {shape}"
        )
    if dataset.shape != (shape[0],):
        raise BadSettings(f"dataset: {dataset.shape} indices for {shape[0]} cells")
    if not np.array_equal(np.unique(dataset), np.arange(len(dataset_names))):
        raise BadSettings(
            f"dataset: indices must run from 0 to {len(dataset_names) - 1}, each with at least one cell"
        )


def check_observed(totals: NDArray[np.float64]) -> None:
    """Refuse counts of which none is above zero.

    Raises
    ------
    BadSettings
        Then.
    """
    if not totals.any():
        raise BadSettings("counts: nothing was observed; give at least one cell with one count")

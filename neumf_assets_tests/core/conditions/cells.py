"""Studies of conditions whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp


@dataclass(frozen=True)
class Part:
    """Counts in memory, read as those on disk are."""

    matrix: sp.csr_matrix
    var_names: pd.Index

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        return self.matrix[start:stop]


def design_table(replicates: int, *, paired: bool = True, cells: int = 1) -> pd.DataFrame:
    """Cells of so many replicates under `ctrl` and `stim`; the same replicates under both if paired."""
    rows = [
        {"dataset": condition, "condition": condition, "donor": f"{'' if paired else condition}p{number}"}
        for condition in ("ctrl", "stim")
        for number in range(replicates)
        for _ in range(cells)
    ]
    return pd.DataFrame(rows)


def added_up(
    rng: np.random.Generator,
    replicates: int,
    genes: int,
    changed: dict[int, float] | None = None,
    dispersion: float = 0.1,
) -> np.ndarray:
    """Counts of one cell type: (ctrl replicates, stim replicates) × genes, negative binomial, of replicates alike.

    ``changed``: natural log of the fold change by gene.
    """
    base = rng.lognormal(4, 1, genes)
    person = np.exp(rng.normal(0, 0.3, (replicates, genes)))
    depth = rng.uniform(0.6, 1.6, 2 * replicates)
    mean = base * np.vstack([person, person]) * depth[:, None]
    for gene, change in (changed or {}).items():
        mean[replicates:, gene] *= np.exp(change)
    return rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape))

"""Simulated droplets: cells of several types, small cells, and empty droplets, all with ambient RNA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Droplets:
    """Counts of all barcodes; large cells come first, then small ones, then what is empty."""

    X: sparse.csr_matrix
    large: int
    small: int
    ambient: np.ndarray

    @property
    def totals(self) -> np.ndarray:
        return np.asarray(self.X.sum(axis=1)).ravel().astype(float)

    def blocks(self):
        for start in range(0, self.X.shape[0], 1000):
            stop = min(start + 1000, self.X.shape[0])
            yield slice(start, stop), self.X[start:stop]


def droplets(
    share: float, seed: int = 0, large: int = 400, small: int = 150, empty: int = 8000, genes: int = 2000
) -> Droplets:
    """Simulate them; ``share`` of the cells' counts is ambient RNA."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(0.3, 1, genes)
    types = np.array([base * rng.lognormal(0, 1.5, genes) * (rng.random(genes) > 0.4) for _ in range(6)])
    types /= types.sum(axis=1, keepdims=True)
    ambient = types.mean(axis=0)
    kind = rng.integers(0, 6, large + small)
    size = np.concatenate([rng.lognormal(8.3, 0.4, large), rng.lognormal(6, 0.3, small)])
    cells = rng.poisson(size[:, None] * ((1 - share) * types[kind] + share * ambient))
    background = rng.poisson(rng.lognormal(3.6, 0.9, empty)[:, None] * ambient)
    return Droplets(sparse.csr_matrix(np.vstack([cells, background])), large, small, ambient)

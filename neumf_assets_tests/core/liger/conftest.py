from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray


@dataclass(frozen=True)
class Planted:
    """Datasets drawn from known factors."""

    X: list[sp.csr_matrix]
    W: NDArray[np.float64]
    V: list[NDArray[np.float64]]
    H: list[NDArray[np.float64]]


def plant(sizes: tuple[int, ...] = (150, 110), genes: int = 80, k: int = 4, seed: int = 0) -> Planted:
    """Every factor has genes of its own, V adds a few; every cell is mostly one factor; about half zeros."""
    rng = np.random.default_rng(seed)
    own = np.arange(genes) % k == np.arange(k)[:, None]
    W = own * rng.gamma(4, 0.5, (k, genes))
    V = [own * (rng.random((k, genes)) < 0.15) * rng.gamma(2, 0.5, (k, genes)) for _ in sizes]
    H = []
    for n in sizes:
        h = rng.gamma(0.3, 0.3, (n, k))
        h[np.arange(n), rng.integers(0, k, n)] += rng.gamma(8, 0.25, n)
        H.append(h)
    mean = [h @ (W + v) for h, v in zip(H, V, strict=True)]
    X = [sp.csr_matrix(rng.poisson(m).astype(np.float32)) for m in mean]
    return Planted(X, W, V, H)


@pytest.fixture(scope="session")
def planted() -> Planted:
    return plant()

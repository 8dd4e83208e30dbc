"""Choosing k and lambda: a row of factorisations, each started from the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from neumf_assets.core.liger.inmf.matrices import ScaledMatrix, as_scaled
from neumf_assets.core.liger.inmf.solver import INMFResult, inmf
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.progress import Progress, silent


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a sweep.

    Parameters
    ----------
    k, lam
        The setting.
    objective
        At the end.
    divergence
        Median over cells of the Kullback-Leibler divergence (bits) of the cell's loadings, as shares, from
        equal shares; rliger's suggestK takes the k where its rise flattens.
    seconds
        Of this point, given the one before.
    result
        The factors.
    """

    k: int
    lam: float
    objective: float
    divergence: float
    seconds: float
    result: INMFResult


def sweep_k(
    datasets: Sequence[sp.csr_matrix | ScaledMatrix],
    ks: Sequence[int],
    settings: LigerSettings | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[SweepPoint]:
    """Factorise for every k, ascending: each starts from the smaller k's factors and adds random ones."""
    settings = settings or LigerSettings()
    points = [settings.model_copy(update={"k": k}) for k in sorted(set(ks))]
    return _sweep(datasets, points, device, progress)


def sweep_lambda(
    datasets: Sequence[sp.csr_matrix | ScaledMatrix],
    lams: Sequence[float],
    settings: LigerSettings | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[SweepPoint]:
    """Factorise for every lambda, ascending, each started from the factors of the one before."""
    settings = settings or LigerSettings()
    points = [settings.model_copy(update={"lam": lam}) for lam in sorted(set(lams))]
    return _sweep(datasets, points, device, progress)


def loading_divergence(H: Sequence[NDArray[np.floating]]) -> float:
    """Return the median divergence, in bits, of the cells' loadings from equal shares (0 to log2 k)."""
    loadings = np.concatenate(list(H)).astype(np.float64)
    total = loadings.sum(axis=1, keepdims=True)
    share = loadings[total[:, 0] > 0] / total[total[:, 0] > 0]
    bits = np.where(share > 0, share * np.log2(np.where(share > 0, share, 1) * share.shape[1]), 0)
    return float(np.median(bits.sum(axis=1))) if len(share) else 0.0


def _sweep(
    datasets: Sequence[sp.csr_matrix | ScaledMatrix],
    points: Sequence[LigerSettings],
    device: str | torch.device,
    progress: Progress,
) -> list[SweepPoint]:
    matrices = [as_scaled(matrix, device) for matrix in datasets]
    found: list[SweepPoint] = []
    for number, settings in enumerate(points):
        start = found[-1].result if found else None
        result = inmf(matrices, settings, device=device, start=start)
        value, divergence = float(result.objective[-1]), loading_divergence(result.H)
        found.append(SweepPoint(settings.k, settings.lam, value, divergence, result.seconds, result))
        progress("sweep", number + 1, len(points), k=settings.k, lam=settings.lam, objective=value)
    return found

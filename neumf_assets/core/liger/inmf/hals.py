"""Hierarchical alternating least squares (Cichocki & Phan 2009): sweeps, Grams, optimality."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def sweep(factor: torch.Tensor, product: torch.Tensor, gram: torch.Tensor, sweeps: int) -> None:
    """Minimise ``½⟨F, GF⟩ − ⟨B, F⟩`` over one non-negative row of F after the other, in place (HALS)."""
    diagonal = gram.diagonal()
    inverse = torch.where(diagonal > 0, 1 / diagonal.clamp_min(1e-300), torch.zeros_like(diagonal))
    others = (gram * inverse[:, None]).fill_diagonal_(0).float()
    target = product * inverse.float()[:, None]
    columns = factor.T
    for _ in range(sweeps):
        for row in range(factor.shape[0]):
            torch.clamp(torch.addmv(target[row], columns, others[row], alpha=-1), min=0, out=factor[row])


def gram(factor: torch.Tensor) -> torch.Tensor:
    """Return ``F Fᵀ`` in float64."""
    wide = factor.double()
    return wide @ wide.T


def violation(factor: torch.Tensor, gradient: torch.Tensor, curvature: torch.Tensor) -> tuple[float, float]:
    """Return the weighted squares of ``min(x, g/d)`` and of ``x``."""
    weight = curvature.double()[:, None]
    scaled = torch.where(weight > 0, gradient.double() / weight.clamp_min(1e-300), torch.zeros_like(weight))
    wide = factor.double()
    violated = torch.minimum(wide, scaled)
    return float((weight * violated**2).sum()), float((weight * wide**2).sum())


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with this many CPU threads, and give the caller's number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Losses of predicted scores against counts, summed over a block of entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from neumf_assets.core.neumf.settings import NeuMFSettings

MAX_LOG_MEAN = 14.0  # exp(14) is about 1.2 million counts: no real entry is larger, and float32 stays exact
MIN_MEAN = 1e-8


def log_mean(score: Tensor, log_size: Tensor, link: str) -> Tensor:
    """Return ``log(size_factor * link(score))`` for the links ``exp`` and ``softplus``."""
    if link == "exp":
        return (score + log_size).clamp(max=MAX_LOG_MEAN)
    return softplus(score).clamp_min(MIN_MEAN).log() + log_size


def mean(score: Tensor, log_size: Tensor, link: str) -> Tensor:
    """Return the mean count ``size_factor * link(score)``."""
    if link == "identity":
        return score * log_size.exp()
    return log_mean(score, log_size, link).exp()


def entry_loss(
    score: Tensor, log_size: Tensor, y: Tensor, settings: NeuMFSettings, log_dispersion: Tensor | None = None
) -> Tensor:
    """Return the loss of every entry, broadcast over ``score`` and ``y``.

    Parameters
    ----------
    score
        ``f`` of the model.
    log_size
        Log size factors, broadcastable to ``score``.
    y
        Observed counts.
    settings
        Objective and link.
    log_dispersion
        ``nb`` only: log of the inverse dispersion theta, broadcastable to ``score``.

    Returns
    -------
    ``poisson``: ``mu - y log mu``; ``nb``: the negative log likelihood up to ``log y!`` (variance
    ``mu + mu^2 / theta``); ``mse``: squared error; ``bce``: cross entropy of ``y > 0`` (He et al. 2017, eq.
    7).
    """
    if settings.objective == "poisson":
        log_mu = log_mean(score, log_size, settings.link)
        return log_mu.exp() - y * log_mu
    if settings.objective == "nb":
        assert log_dispersion is not None
        return _negative_binomial(log_mean(score, log_size, settings.link), y, log_dispersion)
    if settings.objective == "mse":
        return (mean(score, log_size, settings.link) - y).square()
    return softplus(score) - score * (y > 0)


def _negative_binomial(log_mu: Tensor, y: Tensor, log_theta: Tensor) -> Tensor:
    theta = log_theta.exp()
    log_sum = torch.logaddexp(log_mu, log_theta)
    return (
        torch.lgamma(theta) - torch.lgamma(y + theta) - theta * (log_theta - log_sum) - y * (log_mu - log_sum)
    )


def ranking_loss(observed: Tensor, unobserved: Tensor) -> Tensor:
    """Return the loss of pairs of scores that ``observed > unobserved`` (Rendle et al. 2009, BPR-Opt)."""
    return -logsigmoid(observed - unobserved)


def sparse_poisson_loss(
    score: Tensor, log_size: Tensor, row: Tensor, gene: Tensor, value: Tensor, held_out: Tensor | None = None
) -> Tensor:
    """Return the summed Poisson loss (log link) of a block whose counts are given as its observed entries.

    The same as :func:`entry_loss` on the dense block, in fewer passes over it: a zero's loss is its mean alone.

    Parameters
    ----------
    score
        ``f`` of all pairs, ``[B, G]``.
    log_size
        Log size factors, ``[B]``.
    row, gene, value
        Observed entries of the block; no position twice.
    held_out
        Genes that each cell leaves out, ``[B, S]``; ``G`` or more means none.
    """
    position = row * score.shape[1] + gene
    left_out = None
    if held_out is not None:
        start = torch.arange(score.shape[0], device=score.device)[:, None] * score.shape[1]
        left_out = torch.where(held_out < score.shape[1], start + held_out, score.numel()).view(-1)
    return _SparsePoisson.apply(score, log_size, position, value, left_out)


class _SparsePoisson(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, score: Tensor, log_size: Tensor, position: Tensor, value: Tensor, left_out: Tensor | None
    ) -> Tensor:
        log_mu = score + log_size[:, None]
        inside = (log_mu < MAX_LOG_MEAN).view(-1)
        log_mu.clamp_(max=MAX_LOG_MEAN)
        mu = score.new_empty(score.numel() + 1)  # one place more takes what is left out of no cell
        torch.exp(log_mu.view(-1), out=mu[:-1])
        mu[-1] = 0
        if left_out is not None:
            mu[left_out] = -1
            value = value * (mu[position] >= 0)
            mu[left_out] = 0
        loss = mu.sum() - (value * log_mu.view(-1)[position]).sum()
        gradient = mu[:-1].mul_(inside)
        gradient[position] -= value * inside[position]
        ctx.gradient = gradient.view_as(score)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.gradient.mul_(grad_output), None, None, None, None

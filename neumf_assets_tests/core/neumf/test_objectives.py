"""Losses against the distributions' own log probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from scipy.special import gammaln

from neumf_assets.core.neumf.objectives import entry_loss, mean, ranking_loss, sparse_poisson_loss
from neumf_assets.core.neumf.settings import NeuMFSettings

scores = st.floats(-4, 4)
sizes = st.floats(0.2, 5)
counts = st.integers(0, 40)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(scores, sizes, counts, st.sampled_from(["exp", "softplus"]))
def test_poisson_is_the_negative_log_likelihood(score: float, size: float, y: int, link: str) -> None:
    chosen = NeuMFSettings(objective="poisson", link=link)
    mu = size * (np.exp(score) if link == "exp" else np.log1p(np.exp(score)))
    loss = entry_loss(tensor(score), tensor(np.log(size)), tensor(y), chosen)
    assert float(loss) == pytest.approx(-stats.poisson.logpmf(y, mu) - gammaln(y + 1), abs=1e-6)
    assert float(mean(tensor(score), tensor(np.log(size)), link)) == pytest.approx(mu, rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(scores, sizes, counts, st.floats(0.05, 50))
def test_nb_is_the_negative_log_likelihood(score: float, size: float, y: int, theta: float) -> None:
    mu = size * np.exp(score)
    loss = entry_loss(
        tensor(score), tensor(np.log(size)), tensor(y), NeuMFSettings(objective="nb"), tensor(np.log(theta))
    )
    expected = -stats.nbinom.logpmf(y, theta, theta / (theta + mu)) - gammaln(y + 1)
    assert float(loss) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(scores, counts)
def test_bce_is_the_cross_entropy_of_being_observed(score: float, y: int) -> None:
    loss = entry_loss(tensor(score), tensor(0.0), tensor(y), NeuMFSettings(objective="bce"))
    p = 1 / (1 + np.exp(-score))
    assert float(loss) == pytest.approx(-np.log(p if y else 1 - p))


def test_mse_with_the_identity_link_is_the_squared_error() -> None:
    chosen = NeuMFSettings(objective="mse", link="identity")
    loss = entry_loss(tensor(1.5, -2.0), tensor(np.log(2.0)), tensor(1.0, 0.0), chosen)
    assert loss.tolist() == pytest.approx([4.0, 16.0])


@pytest.mark.parametrize("y", [0.5, 1.0, 7.0])
def test_the_poisson_loss_is_least_at_the_count_itself(y: float) -> None:
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    loss = entry_loss(grid, tensor(0.0), tensor(y), NeuMFSettings())
    assert float(grid[loss.argmin()].exp()) == pytest.approx(y, rel=2e-3)


def test_the_log_link_stays_finite() -> None:
    loss = entry_loss(torch.tensor([1e4]), torch.tensor([0.0]), torch.tensor([3.0]), NeuMFSettings())
    assert torch.isfinite(loss).all()


def test_ranking_loss_prefers_the_observed_gene() -> None:
    assert float(ranking_loss(tensor(2.0), tensor(0.0))) < float(ranking_loss(tensor(0.0), tensor(2.0)))
    assert float(ranking_loss(tensor(1.0), tensor(1.0))) == pytest.approx(np.log(2))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="positive mean"):
        NeuMFSettings(objective="poisson", link="identity")
    with pytest.raises(ValidationError, match="sampled"):
        NeuMFSettings(objective="bpr", pairs="full")
    with pytest.raises(ValidationError, match="epochs"):
        NeuMFSettings(epochs=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_the_loss_from_observed_entries_is_that_of_the_dense_block(seed: int, some_held_out: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    score[1, 2] = 20.0  # beyond the clamp
    log_size = torch.randn(4, generator=generator, dtype=torch.float64)
    y = torch.poisson(torch.ones(4, 7, dtype=torch.float64), generator=generator)
    held_out = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(4)])
    mask = torch.ones(4, 9, dtype=torch.float64)
    if some_held_out:
        mask.scatter_(1, held_out, 0.0)
    dense, sparse = score.clone().requires_grad_(), score.clone().requires_grad_()
    expected = (entry_loss(dense, log_size[:, None], y, NeuMFSettings()) * mask[:, :7]).sum()
    row, gene = y.nonzero(as_tuple=True)
    loss = sparse_poisson_loss(sparse, log_size, row, gene, y[row, gene], held_out if some_held_out else None)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        *torch.autograd.grad(3 * loss, sparse), *torch.autograd.grad(3 * expected, dense)
    )

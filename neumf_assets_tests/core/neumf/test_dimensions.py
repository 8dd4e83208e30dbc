"""The number of dimensions is that of the simulated structure, whatever the noise and the datasets' differences."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from neumf_assets.core.neumf.dimensions import FEWEST, _pearson_residuals, significant_axes
from neumf_assets.core.neumf.settings import ineumf_defaults
from neumf_assets.core.neumf.training.fit import fit


def _counts(
    axes: int, strength: float = 1.0, cells: int = 600, genes: int = 500, seed: int = 0
) -> sp.csr_matrix:
    rng = np.random.default_rng([axes, seed])
    score = (
        strength
        * rng.standard_normal((cells, axes))
        @ rng.standard_normal((axes, genes))
        / max(axes, 1) ** 0.5
    )
    size = rng.lognormal(0, 0.4, cells)[:, None]
    gene = rng.gamma(0.5, 0.6, genes)[None, :]
    return sp.csr_matrix(rng.poisson(size * gene * np.exp(score)))


@pytest.mark.parametrize(("axes", "strength"), [(0, 0), (1, 0.15), (3, 0.4), (6, 0.4)])
def test_the_number_of_simulated_axes_is_found(axes: int, strength: float) -> None:
    # an axis that is much stronger would, through the exponential, make a second one
    assert significant_axes(_counts(axes, strength), np.zeros(600, np.intp)) == axes


def test_counting_ends_where_told() -> None:
    assert significant_axes(_counts(6, 0.4), np.zeros(600, np.intp), most=2) == 2


def test_a_difference_between_datasets_is_no_axis() -> None:
    parts = [_counts(0, cells=300), _counts(0, cells=300, seed=1)]  # each with gene means of its own
    counts = sp.csr_matrix(sp.vstack(parts))
    assert significant_axes(counts, np.repeat([0, 1], 300)) == 0
    assert significant_axes(counts, np.zeros(600, np.intp)) == 1


def test_residuals_equal_the_dense_formula() -> None:
    counts, dataset = _counts(2, cells=40, genes=30), np.repeat([0, 1], [25, 15])
    expected = np.zeros(counts.shape)
    for d in (0, 1):
        y = counts[dataset == d].toarray().astype(float)
        mean = np.outer(y.sum(1), y.sum(0)) / y.sum()
        mean[:, (y > 0).sum(0) < 10] = 0
        expected[dataset == d] = np.divide(y - mean, np.sqrt(mean), out=np.zeros_like(y), where=mean > 0)
    operator, variance = _pearson_residuals(counts, dataset)
    np.testing.assert_allclose(operator @ np.eye(30), expected, atol=1e-10)
    np.testing.assert_allclose(operator.H @ np.eye(40), expected.T, atol=1e-10)
    assert variance == pytest.approx((expected[expected != 0] ** 2).mean())


@pytest.mark.parametrize(("axes", "expected"), [(1, FEWEST), (6, 6)])
def test_a_model_without_a_size_takes_the_number_found(axes: int, expected: int) -> None:
    settings = ineumf_defaults().model_copy(update={"epochs": 1, "n_genes": None})
    counts = _counts(axes, 0.4)
    model = fit(
        counts,
        settings,
        gene_names=[f"g{i}" for i in range(500)],
        cell_names=[f"c{i}" for i in range(600)],
        dataset=np.repeat([0, 1], 300),
        dataset_names=["a", "b"],
    )
    assert model.layout.gmf == model.settings.gmf_size == expected

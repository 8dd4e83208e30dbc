"""Size factors and gene selection against dense references and planted genes."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from neumf_assets.core.neumf.genes import overdispersion, select_genes, size_factors


def poisson(seed: int, cells: int, genes: int, rate: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(rate, (cells, genes)).astype(np.int32)


def test_size_factors_are_totals_over_the_median() -> None:
    counts = np.array([[1, 1], [4, 0], [8, 8], [0, 0]])
    np.testing.assert_allclose(size_factors(csr_matrix(counts)), [0.5, 1.0, 4.0, 0.5])


def test_overdispersion_is_variance_over_mean_of_normalised_counts() -> None:
    counts = poisson(0, 60, 8)
    counts[:, 7] = 0
    counts[:9, 7] = 1  # seen in too few cells
    normalised = counts / size_factors(csr_matrix(counts))[:, None]
    expected = normalised.var(axis=0) / normalised.mean(axis=0)
    expected[7] = 0
    np.testing.assert_allclose(overdispersion(csr_matrix(counts)), expected, rtol=1e-5)


def test_planted_variable_genes_are_selected() -> None:
    counts = poisson(1, 200, 100)
    planted = np.array([3, 50, 77])
    counts[:100, planted] *= 6
    chosen = select_genes(csr_matrix(counts), np.zeros(200, int), 3)
    np.testing.assert_array_equal(chosen, planted)


def test_a_difference_between_datasets_alone_selects_no_gene() -> None:
    counts = poisson(2, 300, 100)
    dataset = np.repeat([0, 1], 150)
    counts[dataset == 1, 10] *= 8
    counts[::3, 20] *= 5
    assert 20 in select_genes(csr_matrix(counts), dataset, 1)


def test_all_genes_are_kept_where_no_number_is_given() -> None:
    counts = csr_matrix(poisson(3, 20, 7))
    for number in (None, 7, 100):
        np.testing.assert_array_equal(select_genes(counts, np.zeros(20, int), number), np.arange(7))

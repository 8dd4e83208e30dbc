"""Baselines against dense reference computations, and the figures they are known to reach on real counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import NMF

from neumf_assets.core.neumf.evaluation import baselines
from neumf_assets.core.neumf.genes import size_factors


@pytest.fixture
def counts() -> csr_matrix:
    rng = np.random.default_rng(0)
    means = rng.gamma(0.5, 1, (120, 3)) @ rng.gamma(0.5, 1, (3, 40))
    dense = rng.poisson(means)
    dense[:, 0] += 1
    return csr_matrix(dense.astype(np.int32))


@pytest.fixture
def factors(counts: csr_matrix) -> np.ndarray:
    return size_factors(counts).astype(np.float64)


def whole(blocks) -> np.ndarray:
    return np.vstack([block for _, block in blocks])


def test_constant_is_the_mean_of_all_entries(counts: csr_matrix, factors: np.ndarray) -> None:
    assert whole(baselines.constant(counts, factors)) == pytest.approx(counts.toarray().mean())


def test_gene_mean_keeps_totals_of_genes_and_shares_of_cells(counts: csr_matrix, factors: np.ndarray) -> None:
    means = whole(baselines.gene_mean(counts, factors))
    expected = np.outer(factors, counts.toarray().sum(0)) / factors.sum()
    np.testing.assert_allclose(means, np.maximum(expected, 1e-8), rtol=1e-6)
    np.testing.assert_allclose(means.sum(0), counts.toarray().sum(0), rtol=1e-5)


def test_gene_mean_is_positive_for_a_gene_that_was_never_seen(factors: np.ndarray) -> None:
    assert (whole(baselines.gene_mean(csr_matrix((120, 3), dtype=np.int32), factors)) > 0).all()


def test_svd_agrees_with_a_dense_decomposition(counts: csr_matrix, factors: np.ndarray) -> None:
    logged = np.log1p(counts.toarray() / factors[:, None])
    left, singular, right = np.linalg.svd(logged, full_matrices=False)
    rebuilt = np.expm1((left[:, :4] * singular[:4]) @ right[:4])
    expected = np.maximum(rebuilt, 1e-3) * factors[:, None]
    difference = whole(baselines.svd_log1p(counts, factors, 4)) - expected
    assert np.linalg.norm(difference) < 0.01 * np.linalg.norm(expected)


def test_nmf_is_scikit_learns_on_the_dense_counts(counts: csr_matrix, factors: np.ndarray) -> None:
    dense = counts.toarray().astype(float)
    reference = NMF(
        3, init="nndsvda", solver="mu", beta_loss="kullback-leibler", max_iter=150, random_state=0, tol=0
    )
    reference.fit(dense)
    rebuilt = whole(baselines.kl_nmf(counts, factors, 3, 150))
    divergence = np.where(dense > 0, dense * np.log(np.maximum(dense, 1) / rebuilt), 0) - dense + rebuilt
    assert divergence.sum() == pytest.approx(reference.reconstruction_err_**2 / 2, rel=0.01)


def test_nmf_of_normalised_counts_comes_back_at_the_scale_of_counts(
    counts: csr_matrix, factors: np.ndarray
) -> None:
    means = whole(baselines.kl_nmf(counts, factors, 3, on="normalised"))
    np.testing.assert_allclose(means.sum(), counts.sum(), rtol=0.15)
    assert np.corrcoef(means.sum(1), counts.toarray().sum(1))[0, 1] > 0.97


def test_blocks_cover_every_cell_once_and_depend_on_nothing_but_the_rows(
    counts: csr_matrix, factors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = whole(baselines.svd_log1p(counts, factors, 4))
    monkeypatch.setattr(baselines, "BLOCK_ENTRIES", 40 * 17)
    blocks = list(baselines.svd_log1p(counts, factors, 4))
    assert np.array_equal(np.concatenate([np.arange(120)[rows] for rows, _ in blocks]), np.arange(120))
    assert max(block.shape[0] for _, block in blocks) == 17
    np.testing.assert_allclose(whole(blocks), one, rtol=1e-5)


def test_rank_above_the_size_of_the_matrix_is_cut(factors: np.ndarray) -> None:
    small = csr_matrix(np.random.default_rng(1).poisson(2, (120, 5)).astype(np.int32))
    for method in (baselines.svd_log1p, baselines.kl_nmf):
        means = whole(method(small, factors, 20))
        assert means.shape == (120, 5)
        assert (means > 0).all()

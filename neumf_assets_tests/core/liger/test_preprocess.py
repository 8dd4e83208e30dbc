"""Normalisation, gene selection and scaling against dense float64 loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.preprocess import (
    excess_variance,
    gene_statistics,
    scale,
    scale_dense,
    select_genes,
)
from neumf_assets.core.liger.settings import LigerSettings


def counts(n_cells: int = 120, n_genes: int = 40, seed: int = 0) -> sp.csr_matrix:
    """Poisson counts of very different depth; the first five genes vary more than that."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 2, n_cells)[:, None]
    mean = rng.gamma(1, 3, n_genes) * depth
    mean[:, :5] *= rng.gamma(0.3, 1 / 0.3, mean[:, :5].shape)
    return sp.csr_matrix(rng.poisson(mean).astype(np.int32))


def scaled_reference(X: np.ndarray) -> np.ndarray:
    out = np.zeros(X.shape)
    for cell in range(X.shape[0]):
        if X[cell].sum() > 0:
            out[cell] = X[cell] / X[cell].sum()
    for gene in range(X.shape[1]):
        rms = np.sqrt((out[:, gene] ** 2).sum() / (X.shape[0] - 1))
        if rms > 0:
            out[:, gene] /= rms
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 10_000), st.integers(1, 50))
def test_statistics_equal_dense_moments(n_cells: int, n_genes: int, seed: int, block: int) -> None:
    X = counts(n_cells, n_genes, seed)
    X.data[X.data > 3] = 0  # some cells and genes may become empty
    dense = X.toarray().astype(float)
    total = dense.sum(axis=1, keepdims=True)
    normalised = np.divide(dense, total, out=np.zeros_like(dense), where=total > 0)
    for matrix in (X, dense):
        found = gene_statistics(matrix, block)
        np.testing.assert_allclose(found.totals, total[:, 0])
        np.testing.assert_allclose(found.mean, normalised.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.variance, normalised.var(axis=0, ddof=1), atol=1e-9)


def test_scaled_counts_equal_the_loop_and_stay_sparse() -> None:
    X = counts()
    keep = np.outer(np.arange(120) != 3, np.arange(40) != 7)
    X = sp.csr_matrix(X.multiply(keep))
    genes = np.array([0, 3, 7, 21])
    found = scale(X, gene_statistics(X), genes)
    np.testing.assert_allclose(found.toarray(), scaled_reference(X.toarray())[:, genes], rtol=1e-5)
    assert found.dtype == np.float32
    assert found.nnz == X[:, genes].nnz


def test_scaling_leaves_the_counts_alone() -> None:
    X = counts()
    before = X.copy()
    scale(X, gene_statistics(X), np.arange(40))
    np.testing.assert_array_equal(X.toarray(), before.toarray())


def test_dense_and_stored_matrices_scale_as_sparse_ones(tmp_path: Path) -> None:
    X = counts()
    stored = zarr.create_array(
        store=str(tmp_path / "x.zarr"), shape=X.shape, chunks=(16, 40), dtype="float32"
    )
    stored[:] = X.toarray()
    genes = np.array([1, 4, 30])
    expected = scaled_reference(X.toarray())[:, genes]
    right = np.random.default_rng(0).random((3, 2)).astype(np.float32)
    import torch

    for source in (X.toarray().astype(np.float32), stored):
        matrix = scale_dense(source, gene_statistics(source), genes, block_cells=50)
        assert matrix.sum_squares == pytest.approx((expected**2).sum(), rel=1e-5)
        assert matrix.total == pytest.approx(expected.sum(), rel=1e-5)
        product = torch.cat([block.times(torch.from_numpy(right)) for _, block in matrix.blocks()], dim=1)
        np.testing.assert_allclose(product.numpy().T, expected @ right, rtol=1e-4)


def test_excess_variance_is_rligers() -> None:
    X = counts()
    dense, n = X.toarray().astype(float), X.shape[0]
    normalised = dense / dense.sum(axis=1, keepdims=True)
    noise = np.mean(1 / dense.sum(axis=1))
    mean, variance = normalised.mean(axis=0), normalised.var(axis=0, ddof=1)
    upper = mean + norm.ppf(1 - 0.99 / 40 / 2) * np.sqrt(mean * noise / n)
    ratio, sure = excess_variance(gene_statistics(X), 0.99)
    np.testing.assert_allclose(ratio, np.log10(variance) - np.log10(mean * noise), rtol=1e-9)
    np.testing.assert_array_equal(sure, variance / noise > upper)


def test_variable_genes_are_selected_and_poisson_genes_are_not() -> None:
    X = counts(2000, 40)
    chosen = select_genes([gene_statistics(X)], LigerSettings())
    np.testing.assert_array_equal(chosen, np.arange(5))
    by_rank = select_genes([gene_statistics(X)], LigerSettings(n_genes=5))
    np.testing.assert_array_equal(by_rank, np.arange(5))


def test_a_gene_variable_in_one_dataset_is_selected() -> None:
    rng = np.random.default_rng(1)
    plain = sp.csr_matrix(rng.poisson(5, (1500, 30)))
    varied = plain.toarray() * 1
    varied[:, 12] = rng.poisson(5 * rng.gamma(0.3, 1 / 0.3, 1500))
    both = [gene_statistics(plain), gene_statistics(sp.csr_matrix(varied))]
    np.testing.assert_array_equal(select_genes(both, LigerSettings()), [12])


def test_number_of_genes_is_exact_and_capped() -> None:
    statistics = [gene_statistics(counts(seed=s)) for s in (0, 1)]
    assert select_genes(statistics, LigerSettings(n_genes=17)).size == 17
    assert select_genes(statistics, LigerSettings(n_genes=100)).size == 40


def test_no_variable_gene_is_an_error_that_says_what_to_do() -> None:
    plain = sp.csr_matrix(np.random.default_rng(0).poisson(3, (300, 20)))
    with pytest.raises(NeumfError, match="gene_threshold"):
        select_genes([gene_statistics(plain)], LigerSettings(gene_threshold=1.0))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_impossible_values_are_refused(value: float) -> None:
    bad = np.ones((4, 3))
    bad[2, 1] = value
    for matrix in (bad, sp.csr_matrix(bad)):
        with pytest.raises(NeumfError, match="non-negative"):
            gene_statistics(matrix)

"""Thinning conserves counts and splits them binomially; left-out genes are observed and unseen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.sparse import csr_matrix

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.evaluation.thinning import leave_one_out, thin, unseen_in_train

matrices = arrays(np.int32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 50))


@settings(deadline=None, max_examples=60)
@given(matrices, st.floats(0.05, 0.95), st.integers(0, 2**31 - 1))
def test_thinning_conserves_every_count(dense: np.ndarray, share: float, seed: int) -> None:
    counts = csr_matrix(dense)
    split = thin(counts, share, seed)
    assert np.array_equal((split.train + split.test).toarray(), dense)
    for part in (split.train, split.test):
        assert part.dtype == counts.dtype
        assert (part.data > 0).all()
    assert np.array_equal(counts.toarray(), dense)


def test_thinned_counts_follow_the_binomial_law() -> None:
    n, share = 20, 0.8
    split = thin(csr_matrix(np.full((200, 100), n, np.int32)), share, seed=3)
    observed = np.bincount(split.train.toarray().ravel(), minlength=n + 1)
    expected = stats.binom.pmf(np.arange(n + 1), n, share) * 20_000
    rare = expected < 20
    pooled = (
        np.append(observed[~rare], observed[rare].sum()),
        np.append(expected[~rare], expected[rare].sum()),
    )
    assert stats.chisquare(*pooled).pvalue > 1e-4


def test_parts_of_poisson_counts_are_independent_with_the_stated_ratio() -> None:
    rng = np.random.default_rng(0)
    split = thin(csr_matrix(rng.poisson(3.0, (400, 250)).astype(np.int32)), 0.8, seed=1)
    train, test = split.train.toarray().ravel(), split.test.toarray().ravel()
    assert split.ratio == pytest.approx(0.25)
    assert test.mean() / train.mean() == pytest.approx(split.ratio, rel=0.02)
    assert abs(np.corrcoef(train, test)[0, 1]) < 4 / np.sqrt(train.size)


def test_a_seed_means_one_split_whatever_the_order_of_the_entries() -> None:
    counts = csr_matrix(np.random.default_rng(1).poisson(1.0, (30, 20)).astype(np.int32))
    backwards = counts.copy()
    for row in range(30):
        span = slice(*counts.indptr[row : row + 2])
        backwards.indices[span] = counts.indices[span][::-1]
        backwards.data[span] = counts.data[span][::-1]
    backwards.has_sorted_indices = False
    assert (thin(counts, seed=5).train != thin(backwards, seed=5).train).nnz == 0
    assert (thin(counts, seed=5).train != thin(counts, seed=6).train).nnz > 0


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(BadSettings, match="train_share"):
        thin(csr_matrix((2, 2), dtype=np.int32), share)


@pytest.mark.parametrize("value", [0.5, -1.0])
def test_only_counts_can_be_thinned(value: float) -> None:
    with pytest.raises(BadSettings, match="counts"):
        thin(csr_matrix(np.array([[value, 1.0]])))


@settings(deadline=None, max_examples=60)
@given(matrices, st.integers(0, 2**31 - 1))
def test_leave_one_out_takes_one_observed_gene_of_each_cell_with_two(dense: np.ndarray, seed: int) -> None:
    left = leave_one_out(csr_matrix(dense), seed)
    assert np.array_equal(left.cells, np.flatnonzero((dense > 0).sum(1) >= 2))
    assert (dense[left.cells, left.genes] > 0).all()
    expected = dense.copy()
    expected[left.cells, left.genes] = 0
    assert np.array_equal(left.train.toarray(), expected)


def test_leave_one_out_draws_uniformly_among_the_observed_genes() -> None:
    dense = np.zeros((6000, 6), np.int32)
    dense[:, [1, 3, 5]] = [1, 10, 100]
    genes = leave_one_out(csr_matrix(dense), seed=2).genes
    assert stats.chisquare(np.bincount(genes, minlength=6)[[1, 3, 5]]).pvalue > 1e-4


@settings(deadline=None, max_examples=60)
@given(matrices, st.integers(0, 2**31 - 1))
def test_unseen_genes_were_observed_and_are_absent_from_train(dense: np.ndarray, seed: int) -> None:
    split = thin(csr_matrix(dense), 0.5, seed)
    left = unseen_in_train(split, seed)
    train, test = split.train.toarray(), split.test.toarray()
    assert np.array_equal(left.cells, np.flatnonzero(((test > 0) & (train == 0)).any(1)))
    assert (test[left.cells, left.genes] > 0).all()
    assert (train[left.cells, left.genes] == 0).all()

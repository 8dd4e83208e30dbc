"""Doublets are found where they are put in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from neumf_assets.core.cells import doublets
from neumf_assets.core.cells.doublets import find_doublets

N, GENES, TYPES = 900, 800, 5


def cells(seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.gamma(0.3, 1, GENES)
    shares = np.array([base * rng.lognormal(0, 1.2, GENES) for _ in range(TYPES)])
    shares /= shares.sum(axis=1, keepdims=True)
    kind = rng.integers(0, TYPES, N)
    totals = rng.lognormal(7.5, 0.3, N)
    return sparse.csr_matrix(rng.poisson(totals[:, None] * shares[kind])), kind


@pytest.fixture(scope="module")
def mixed() -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Cells with doublets of two types after them: which are those."""
    X, kind = cells()
    rng = np.random.default_rng(7)
    pairs = rng.integers(0, N, (90, 2))
    pairs = pairs[kind[pairs[:, 0]] != kind[pairs[:, 1]]]
    both = sparse.vstack([X, X[pairs[:, 0]] + X[pairs[:, 1]]]).tocsr()
    order = rng.permutation(both.shape[0])
    true = (np.arange(both.shape[0]) >= N)[order]
    return both[order], true, order


def test_doublets_of_two_types_score_highest(
    mixed: tuple[sparse.csr_matrix, np.ndarray, np.ndarray],
) -> None:
    X, true, _ = mixed
    found = find_doublets(lambda chosen: X[chosen], X.shape[0], rate=0.1)
    assert found is not None
    assert roc_auc_score(true, found.score) > 0.95
    assert found.called[true].mean() > 0.6
    assert found.called[~true].mean() < 0.05
    assert found.called.mean() <= 0.1 + 1 / X.shape[0], "no more than expected"


def test_parts_of_a_large_dataset_find_them_too(
    mixed: tuple[sparse.csr_matrix, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, true, _ = mixed
    monkeypatch.setattr(doublets, "CHUNK", 350)
    said: list[tuple[str, int, int]] = []
    found = find_doublets(
        lambda chosen: X[chosen], X.shape[0], rate=0.1, progress=lambda *about: said.append(about)
    )
    assert found is not None and np.isfinite(found.score).all()
    assert roc_auc_score(true, found.score) > 0.9
    assert said[-1] == ("doublets", 3, 3)


def test_cells_without_doublets_have_hardly_any_called() -> None:
    X, _ = cells(3)
    found = find_doublets(lambda chosen: X[chosen], N)
    assert found is not None
    assert found.expected == pytest.approx(0.0072)
    assert found.called.mean() <= 0.0072 + 1 / N


def test_the_same_seed_gives_the_same_scores() -> None:
    X, _ = cells(3)
    first, second = (find_doublets(lambda chosen: X[chosen], N, seed=4) for _ in range(2))
    assert first is not None and second is not None
    np.testing.assert_array_equal(first.called, second.called)


def test_few_cells_are_not_judged() -> None:
    X, _ = cells()
    assert find_doublets(lambda chosen: X[chosen], 99) is None

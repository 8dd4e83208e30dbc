"""Principal components against scikit-learn's, however the cells are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from neumf_assets.core.cells import components
from neumf_assets.core.cells.components import Components, principal_components
from neumf_assets.core.errors import NeumfError


class Counts:
    """Counts in memory, read as those on disk are."""

    def __init__(self, X: csr_matrix) -> None:
        self.X, self.shape = X, X.shape

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Some cells."""
        return self.X[start:stop]


def drawn(cells: int = 70, genes: int = 25) -> Counts:
    rng = np.random.default_rng(0)
    mean = np.exp(rng.normal(size=(cells, 3)) @ rng.normal(size=(3, genes)))
    X = rng.poisson(mean)
    X[4] = 0
    return Counts(csr_matrix(X.astype(np.int32)))


@pytest.mark.parametrize("block", [7, 1000])
def test_they_are_those_of_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "BLOCK_CELLS", block)
    counts, genes = drawn(), np.array([1, 4, 7, 8, 9, 20])
    found = principal_components(counts, [f"g{i}" for i in range(25)], genes, 4)
    totals = counts.X.sum(1).A1 if hasattr(counts.X.sum(1), "A1") else np.asarray(counts.X.sum(1)).ravel()
    logged = np.log1p(counts.X.toarray()[:, genes] / np.maximum(totals, 1)[:, None] * 1e4)
    wanted = PCA(4).fit(logged)
    scores = wanted.transform(logged)
    signs = np.sign((scores * found.embedding).sum(0))
    np.testing.assert_allclose(found.embedding * signs, scores, atol=1e-3)
    np.testing.assert_allclose(found.variance, wanted.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(found.loadings.T @ found.loadings, np.eye(4), atol=1e-5)
    assert found.genes == ("g1", "g4", "g7", "g8", "g9", "g20")
    assert (found.loadings[np.abs(found.loadings).argmax(0), range(4)] > 0).all()


def test_there_are_no_more_than_the_data_have() -> None:
    found = principal_components(drawn(5, 25), [str(i) for i in range(25)], np.arange(25), 30)
    assert found.embedding.shape == (5, 4)


def test_they_come_back_from_the_disk(tmp_path: Path) -> None:
    found = principal_components(drawn(), [str(i) for i in range(25)], np.arange(25), 3)
    found.save(tmp_path)
    again = Components.load(tmp_path)
    assert again.genes == found.genes
    for name in ("loadings", "mean", "embedding", "variance"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_one_gene_has_no_components() -> None:
    with pytest.raises(NeumfError, match="take two cells and genes"):
        principal_components(drawn(), [str(i) for i in range(25)], np.array([3]), 3)

"""Held-out deviance of integrative models, against a loop over entries and against known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.metrics import mean_poisson_deviance

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.evaluation.thinning import thin
from neumf_assets.core.neumf.evaluation.together import evaluate_together
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets_tests.core.neumf.problems import changed, low_rank, train

NAMES = ["a", "b"]


def evaluated(counts: csr_matrix, dataset: np.ndarray, settings: NeuMFSettings) -> dict[str, float]:
    genes = [f"g{i}" for i in range(counts.shape[1])]
    return evaluate_together(counts, dataset, settings, gene_names=genes, dataset_names=NAMES, seed=4)


def test_each_dataset_has_the_deviance_of_its_own_entries() -> None:
    counts, _, dataset = low_rank(cells=90, genes=30, shift=1.0, n_datasets=2)
    settings = changed(kind="gmf", n_genes=20)
    found = evaluated(counts, dataset, settings)
    parts = thin(counts, 0.8, 4)
    model = train(parts.train, settings, dataset=dataset, dataset_names=NAMES)
    for number, name in enumerate(NAMES):
        own = np.flatnonzero(dataset == number)
        test = parts.test[own][:, model.gene_positions].toarray()
        expected = mean_poisson_deviance(test.ravel(), (0.25 * model.predict(own)).ravel())
        assert found[name] == pytest.approx(expected, rel=1e-4)


def test_a_model_that_knows_the_datasets_predicts_their_difference() -> None:
    counts, _, dataset = low_rank(cells=300, genes=40, shift=2.0, n_datasets=2)
    settings = changed(kind="gmf", gmf_size=2, epochs=80, learning_rate=0.05)
    knowing = evaluated(counts, dataset, settings)
    guessed = np.random.default_rng(0).permutation(dataset)
    guessing = evaluated(counts, guessed, settings)
    entries = np.bincount(dataset)
    assert entries @ list(knowing.values()) < 0.95 * (entries @ list(guessing.values()))


def test_a_model_without_means_is_refused() -> None:
    counts, _, dataset = low_rank(cells=30, genes=10, n_datasets=2)
    with pytest.raises(BadSettings, match="bpr predicts no counts"):
        evaluated(counts, dataset, changed(objective="bpr", pairs="sampled"))

"""The common space of datasets whose compositions differ."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.spatial.distance import pdist
from sklearn.neighbors import KNeighborsClassifier

from neumf_assets.core.neumf.common_space import common_space, taken_by_biases
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets_tests.core.neumf.problems import changed, train

GENES, KINDS = 80, 5


def compositions(
    kinds_of_second: list[int], effect: float = 0.0
) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Counts, datasets and kinds: all kinds in the first dataset, some in the second, with an effect on ten genes."""
    rng = np.random.default_rng(0)
    profiles = np.random.default_rng(7).normal(0, 1.0, (KINDS, GENES))
    kind = np.concatenate([rng.integers(KINDS, size=400), rng.choice(kinds_of_second, 150)])
    dataset = np.repeat([0, 1], [400, 150])
    score = profiles[kind] + effect * dataset[:, None] * (np.arange(GENES) < 10) - 0.3
    return csr_matrix(rng.poisson(np.exp(score)).astype(np.int32)), dataset, kind


def model_of(counts: csr_matrix, dataset: np.ndarray, **changes: object) -> NeuMFModel:
    settings = changed(**{"kind": "gmf", "gmf_size": 6, "epochs": 60, "shift_penalty": 2000.0, **changes})
    return train(counts, settings, dataset=dataset, dataset_names=["a", "b"][: dataset.max() + 1])


def accuracy(points: np.ndarray, dataset: np.ndarray, kind: np.ndarray) -> float:
    voter = KNeighborsClassifier(15, metric="cosine").fit(points[dataset == 0], kind[dataset == 0])
    return float(voter.score(points[dataset == 1], kind[dataset == 1]))


@pytest.mark.parametrize("effect", [0.0, 0.7])
@pytest.mark.parametrize("kinds", [[2], [1, 4], list(range(KINDS))], ids=str)
def test_cells_lie_with_their_kind_whatever_else_is_in_their_dataset(kinds: list[int], effect: float) -> None:
    counts, dataset, kind = compositions(kinds, effect)
    assert accuracy(common_space(model_of(counts, dataset)), dataset, kind) > 0.95


def test_the_biases_of_a_dataset_of_one_kind_take_that_kind() -> None:
    """What is mended: the embedding as learnt takes a dataset of one kind for the average cell of the other."""
    counts, dataset, kind = compositions([2])
    model = model_of(counts, dataset)
    assert accuracy(model.cell_embedding("gmf", "gene"), dataset, kind) < 0.7
    alike = model_of(*compositions(list(range(KINDS)))[:2])
    assert np.linalg.norm(taken_by_biases(model)) > 3 * np.linalg.norm(taken_by_biases(alike))


def test_the_space_of_one_dataset_is_its_embedding_around_the_mean() -> None:
    counts, _, _ = compositions([0])
    model = model_of(counts, np.zeros(550, np.intp))
    found = common_space(model)
    scores = model.cell_embedding("gmf") @ (model.tables["genes"] * model.tables["tower"][:6]).numpy().T
    expected = pdist(scores) / np.sqrt(GENES)
    np.testing.assert_allclose(pdist(found), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    assert not taken_by_biases(model).any()


def test_a_model_without_a_gmf_part_has_a_space_too() -> None:
    counts, dataset, _ = compositions([0, 1])
    points = common_space(model_of(counts, dataset, kind="mlp", epochs=2))
    assert len(points) == 550 and np.abs(points.mean(0)).max() < 1e-4

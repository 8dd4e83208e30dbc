"""A model joined with datasets mapped onto it predicts for each what its own model predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.mapping.joined_model import join
from neumf_assets.core.neumf.mapping.map_cells import map_dataset
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit

GENES = np.array([f"g{number}" for number in range(20)])
SETTINGS = NeuMFSettings(kind="gmf", gmf_size=3, epochs=3, n_genes=None, threads=1)


def _counts(cells: int, seed: int) -> csr_matrix:
    rng = np.random.default_rng(seed)
    return csr_matrix(
        rng.poisson(rng.gamma(1.0, 1.0, (cells, 1)) * rng.gamma(1.0, 1.0, (1, GENES.size)) + 0.1)
    )


def _names(dataset: str, cells: int) -> np.ndarray:
    return np.array([f"{dataset}-{cell}" for cell in range(cells)])


@pytest.fixture(scope="module")
def base() -> NeuMFModel:
    return fit(
        csr_matrix(np.vstack([_counts(12, 0).toarray(), _counts(9, 1).toarray()])),
        SETTINGS,
        gene_names=GENES,
        cell_names=np.concatenate([_names("a", 12), _names("c", 9)]),
        dataset=np.repeat([0, 1], [12, 9]),
        dataset_names=["a", "c"],
    )


@pytest.fixture(scope="module")
def mapped(base: NeuMFModel) -> NeuMFModel:
    lacking = GENES[3:]
    return map_dataset(base, _counts(7, 2)[:, 3:], gene_names=lacking, cell_names=_names("b", 7), name="b")


def test_each_dataset_is_predicted_as_by_its_own_model(base: NeuMFModel, mapped: NeuMFModel) -> None:
    joined = join(base, [mapped], ["a", "b", "c"])
    assert joined.shape == (28, 20)
    assert joined.dataset_names == ["a", "b", "c"]
    assert joined.cell_names.tolist() == [*_names("a", 12), *_names("b", 7), *_names("c", 9)]
    found = joined.predict()
    np.testing.assert_array_equal(found[:12], base.predict()[:12])
    np.testing.assert_array_equal(found[19:], base.predict()[12:])
    np.testing.assert_allclose(found[12:19][:, 3:], mapped.predict(), rtol=1e-5)
    assert (found[12:19][:, :3] > 0).all()


def test_a_joined_model_can_be_stored_and_joined_again(
    base: NeuMFModel, mapped: NeuMFModel, tmp_path: Path
) -> None:
    join(base, [mapped], ["a", "b", "c"]).save(tmp_path)
    again = NeuMFModel.load(tmp_path)
    other = map_dataset(again, _counts(5, 4), gene_names=GENES, cell_names=_names("b", 5), name="b")
    replaced = join(again, [other], ["a", "b", "c"])
    assert replaced.shape == (26, 20)
    np.testing.assert_allclose(replaced.predict()[12:17], other.predict(), rtol=1e-5)
    without = join(again, [], ["a", "c"])
    np.testing.assert_array_equal(without.predict(), base.predict())


def test_an_unknown_dataset_is_named(base: NeuMFModel) -> None:
    with pytest.raises(BadSettings, match="nowhere"):
        join(base, [], ["a", "nowhere"])

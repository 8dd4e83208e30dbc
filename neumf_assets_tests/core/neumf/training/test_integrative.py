"""The integrative model and the mapping of new cells onto it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.neighbors import KNeighborsClassifier

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.mapping.map_cells import map_dataset
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets_tests.core.neumf.problems import changed, train

GENES = 60
SETTINGS = changed(kind="gmf", epochs=60, shift_penalty=200.0, weight_decay=2.0)


def conditions(cells: int = 360, seed: int = 0) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Return counts of four cell types under two conditions, dataset and type of each cell."""
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(99).normal(0, 1.2, (4, GENES))
    response = np.where(np.arange(GENES) < 10, 1.8, 0.0)
    kind, dataset = rng.integers(4, size=cells), np.arange(cells) % 2
    score = profiles[kind] + response * dataset[:, None] + rng.normal(0, 0.3, (cells, 1))
    return csr_matrix(rng.poisson(np.exp(score)).astype(np.int32)), dataset, kind


def joint(counts: csr_matrix, dataset: np.ndarray, **changes: object) -> NeuMFModel:
    settings = changed(**(SETTINGS.model_dump() | changes))
    return train(counts, settings, dataset=dataset, dataset_names=["ctrl", "stim"])


def shift_norm(model: NeuMFModel) -> float:
    return float(model.tables["shifts"][..., :-1].norm())


@pytest.mark.parametrize("kind", ["gmf", "mlp", "neumf"])
def test_a_larger_penalty_leaves_less_to_the_datasets(kind: str) -> None:
    counts, dataset, _ = conditions()
    norms = [
        shift_norm(joint(counts, dataset, kind=kind, epochs=15, shift_penalty=penalty))
        for penalty in (0.01, 10.0, 1e4)
    ]
    assert norms[0] > norms[1] > norms[2]
    assert norms[2] < 0.05 * norms[0]


def test_a_single_dataset_has_no_shifts() -> None:
    counts, _, _ = conditions()
    assert train(counts, SETTINGS.model_copy(update={"epochs": 2})).tables["shifts"].shape == (1, GENES, 1)


def test_types_match_across_conditions_in_the_common_space() -> None:
    counts, dataset, kind = conditions()
    space = joint(counts, dataset).cell_embedding("gmf", "gene")
    voter = KNeighborsClassifier(15).fit(space[dataset == 0], kind[dataset == 0])
    assert (voter.predict(space[dataset == 1]) == kind[dataset == 1]).mean() > 0.95


def test_the_response_is_in_the_datasets_part() -> None:
    counts, dataset, _ = conditions()
    model = joint(counts, dataset)
    bias = model.tables["shifts"][..., -1].numpy()
    difference = bias[1] - bias[0]
    assert difference[:10].mean() - difference[10:].mean() > 1.0


@pytest.fixture(scope="module")
def reference() -> tuple[NeuMFModel, csr_matrix, np.ndarray, np.ndarray]:
    counts, dataset, kind = conditions()
    return joint(counts, dataset), counts, dataset, kind


GENE_NAMES = [f"g{i}" for i in range(GENES)]


@pytest.mark.parametrize("like", [None, "stim"])
def test_new_cells_are_mapped_among_their_own_type(
    reference: tuple[NeuMFModel, csr_matrix, np.ndarray, np.ndarray], like: str | None
) -> None:
    model, _, _, kind = reference
    counts, dataset, new_kind = conditions(cells=160, seed=7)
    rows = dataset == 1
    names = [f"new{i}" for i in range(int(rows.sum()))]
    before = {name: table.clone() for name, table in model.tables.items()}
    mapped = map_dataset(model, counts[rows], gene_names=GENE_NAMES, cell_names=names, name="new", like=like)
    voter = KNeighborsClassifier(15).fit(model.cell_embedding("gmf"), kind)
    assert (voter.predict(mapped.cell_embedding("gmf")) == new_kind[rows]).mean() > 0.95
    for name, table in before.items():
        assert torch.equal(model.tables[name], table)
    assert torch.equal(mapped.tables["genes"], model.tables["genes"])
    assert torch.equal(mapped.tables["tower"], model.tables["tower"])
    if like is not None:
        assert torch.equal(mapped.tables["shifts"][0], model.tables["shifts"][1])
    assert mapped.dataset_names == ["new"]
    assert mapped.cell_names.tolist() == names


def test_mapping_leaves_normalisation_as_it_was_trained() -> None:
    counts, dataset, _ = conditions(cells=80)
    model = joint(counts, dataset, kind="mlp", epochs=2, batch_norm=True, dropout=0.2)
    mapped = map_dataset(
        model, counts[:30], gene_names=GENE_NAMES, cell_names=[f"n{i}" for i in range(30)], name="new"
    )
    for name, value in model.statistics.items():
        assert torch.equal(mapped.statistics[name], value)


def test_mapping_costs_only_the_new_entries(
    reference: tuple[NeuMFModel, csr_matrix, np.ndarray, np.ndarray],
) -> None:
    model, counts, _, _ = reference
    row = map_dataset(
        model,
        counts[:40],
        gene_names=GENE_NAMES,
        cell_names=[f"n{i}" for i in range(40)],
        name="new",
        epochs=1,
    ).history[0]
    assert float(row["pairs_per_second"]) * float(row["seconds"]) == pytest.approx(40 * GENES)


def test_genes_are_matched_by_name(
    reference: tuple[NeuMFModel, csr_matrix, np.ndarray, np.ndarray],
) -> None:
    model, counts, _, _ = reference
    order = np.random.default_rng(0).permutation(GENES)
    options = {"cell_names": [f"n{i}" for i in range(50)], "name": "new", "epochs": 5}
    straight = map_dataset(model, counts[:50], gene_names=GENE_NAMES, **options)
    shuffled = map_dataset(model, counts[:50][:, order], gene_names=[GENE_NAMES[g] for g in order], **options)
    np.testing.assert_array_equal(straight.cell_embedding(), shuffled.cell_embedding())
    part = map_dataset(model, counts[:50, :40], gene_names=GENE_NAMES[:40], **options)
    assert part.gene_names.tolist() == GENE_NAMES[:40]


def test_a_mapping_that_cannot_be_is_refused(
    reference: tuple[NeuMFModel, csr_matrix, np.ndarray, np.ndarray],
) -> None:
    model, counts, _, _ = reference
    names = [f"n{i}" for i in range(50)]
    with pytest.raises(BadSettings, match="none of them"):
        map_dataset(model, counts[:50], gene_names=["x"] * GENES, cell_names=names, name="new")
    with pytest.raises(BadSettings, match="not one of ctrl, stim"):
        map_dataset(model, counts[:50], gene_names=GENE_NAMES, cell_names=names, name="new", like="other")


def test_mapped_models_can_be_saved(
    reference: tuple[NeuMFModel, csr_matrix, np.ndarray, np.ndarray], tmp_path: Path
) -> None:

    model, counts, _, _ = reference
    folder = tmp_path
    mapped = map_dataset(
        model,
        counts[:20],
        gene_names=GENE_NAMES,
        cell_names=[f"n{i}" for i in range(20)],
        name="new",
        epochs=2,
    )
    mapped.save(folder)
    np.testing.assert_array_equal(NeuMFModel.load(folder).predict(), mapped.predict())

"""The chain in one call: names, storage, forms of input; and real data, where it is there."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from pydantic import ValidationError

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.chain import DenseDataset, LigerResult, run_liger
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets_tests.core.liger.conftest import plant

SETTINGS = LigerSettings(k=4, n_genes=60, restarts=2, iterations=40, trial_iterations=5)


def datasets(order: bool = False) -> dict[str, ad.AnnData]:
    """Two datasets with 80 common genes; the second has one more and another order of its columns."""
    planted = plant((150, 110))
    names = [f"G{i}" for i in range(80)]
    first, second = (x.astype(np.int32) for x in planted.X)
    columns = np.random.default_rng(0).permutation(80) if order else np.arange(80)
    wider = sp.hstack([second[:, columns], sp.csr_matrix(np.ones((110, 1), np.int32))]).tocsr()
    found = {"ctrl": ad.AnnData(first), "stim": ad.AnnData(wider)}
    found["ctrl"].var_names = names
    found["stim"].var_names = [*np.array(names)[columns], "ONLY_HERE"]
    for name, data in found.items():
        data.obs_names = [f"{name}_{i}" for i in range(data.n_obs)]
    return found


def test_names_sizes_and_provenance() -> None:
    result = run_liger(datasets(), SETTINGS)
    assert result.factors.datasets == ("ctrl", "stim")
    assert len(result.factors.genes) == 60 and "ONLY_HERE" not in result.factors.genes
    assert result.embedding.shape == (260, 4) and result.embedding.dtype == np.float32
    assert result.cell_names[0] == "ctrl_0" and result.cell_names[-1] == "stim_109"
    assert np.bincount(result.dataset).tolist() == [150, 110]
    assert len(str(result.provenance["data_sha256"])) == 64
    json.dumps(result.provenance)


def test_order_of_genes_in_a_dataset_does_not_matter() -> None:
    one, other = run_liger(datasets(), SETTINGS), run_liger(datasets(order=True), SETTINGS)
    assert one.factors.genes == other.factors.genes
    np.testing.assert_allclose(one.factors.result.objective, other.factors.result.objective, rtol=1e-5)


def test_saved_result_comes_back_whole(tmp_path: Path) -> None:
    result = run_liger(datasets(), SETTINGS)
    result.save(tmp_path / "result")
    back = LigerResult.load(tmp_path / "result")
    assert back.settings == result.settings and back.provenance == result.provenance
    assert back.factors.genes == result.factors.genes
    np.testing.assert_array_equal(back.embedding, result.embedding)
    np.testing.assert_array_equal(back.cell_names, result.cell_names)
    np.testing.assert_array_equal(back.rms, result.rms)
    np.testing.assert_array_equal(back.factors.result.objective, result.factors.result.objective)


def test_dense_and_stored_matrices_give_the_same_factors(tmp_path: Path) -> None:
    sparse = datasets()
    dense: dict[str, ad.AnnData | DenseDataset] = {}
    for name, data in sparse.items():
        path = str(tmp_path / f"{name}.zarr")
        stored = zarr.create_array(store=path, shape=data.shape, chunks=(32, 81), dtype="float32")
        stored[:] = data.X.toarray()
        dense[name] = DenseDataset(stored, data.obs_names, data.var_names)
    chosen = SETTINGS.model_copy(update={"batch_cells": 64})
    one, other = run_liger(sparse, chosen), run_liger(dense, chosen)
    assert one.factors.genes == other.factors.genes
    np.testing.assert_allclose(one.factors.result.objective, other.factors.result.objective, rtol=1e-3)
    in_memory = {
        n: ad.AnnData(d.X.toarray().astype(np.float32), obs=d.obs, var=d.var) for n, d in sparse.items()
    }
    assert run_liger(in_memory, chosen).factors.genes == one.factors.genes


def test_given_genes_are_taken_as_given() -> None:
    genes = ["G7", "G3", "nowhere", "ONLY_HERE", "G11", "G5", "G2"]
    result = run_liger(datasets(), SETTINGS, genes=genes)
    assert result.factors.genes == ("G7", "G3", "G11", "G5", "G2")


def test_online_setting_gives_about_the_same_objective() -> None:
    batch = run_liger(datasets(), SETTINGS)
    online = run_liger(
        datasets(), SETTINGS.model_copy(update={"online": True, "batch_cells": 40, "epochs": 8})
    )
    assert online.factors.result.objective[-1] <= 1.05 * batch.factors.result.objective[-1]


def test_reconstruction_resembles_the_counts() -> None:
    data = datasets()
    result = run_liger(data, SETTINGS)
    rows = np.vstack([block for _, block in result.reconstruct("stim", block_cells=33)])
    counts = data["stim"][:, list(result.factors.genes)].X.toarray()
    assert rows.shape == counts.shape
    assert np.corrcoef(rows.ravel(), counts.ravel())[0, 1] > 0.8
    np.testing.assert_allclose(rows.sum() / counts.sum(), 1, atol=0.1)
    shared = np.vstack([block for _, block in result.reconstruct("stim", shared=True)])
    assert (shared <= rows + 1e-4).all()
    with pytest.raises(NeumfError, match="not one of the datasets"):
        result.reconstruct("other")


def test_types_are_found_across_datasets() -> None:
    """Cells of one planted factor in both datasets come to lie together after alignment."""
    planted = plant((150, 110))
    result = run_liger(datasets(), SETTINGS)
    types = np.concatenate([h.argmax(axis=1) for h in planted.H])
    unit = result.embedding / np.linalg.norm(result.embedding, axis=1, keepdims=True)
    first, second = unit[result.dataset == 0], unit[result.dataset == 1]
    near = np.argmax(second @ first.T, axis=1)
    assert np.mean(types[:150][near] == types[150:]) > 0.9


@pytest.mark.parametrize(
    ("given", "says"),
    [({}, "at least one dataset"), ({"a": ("x", "y"), "b": ("p", "q")}, "no gene in common")],
)
def test_unusable_input_is_refused(given: dict[str, tuple[str, str]], says: str) -> None:
    made = {name: DenseDataset(np.ones((9, 2)), list("abcdefghi"), genes) for name, genes in given.items()}
    with pytest.raises(NeumfError, match=says):
        run_liger(made)


@pytest.mark.parametrize(
    "wrong", [{"k": 1}, {"lam": -1}, {"restarts": 0}, {"alignment": "harmony"}, {"lambda": 5}, {"tol": 2}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LigerSettings(**wrong)


def test_settings_import_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, neumf_assets.core.liger.settings as s; s.LigerSettings();"
        "print([m for m in ('torch', 'scipy', 'numpy', 'sklearn', 'anndata', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.real_data
def test_interferon_study_integrates(real_data: Path) -> None:
    """Conditions mix, cell types stay apart, and the objective is at its known optimum (kang_ifnb)."""
    from sklearn.neighbors import NearestNeighbors

    data = {name: ad.read_h5ad(real_data / "kang_ifnb" / f"{name}.h5ad") for name in ("ctrl", "stim")}
    result = run_liger(data, LigerSettings(n_genes=2000, restarts=1))
    assert result.factors.result.objective[-1] < 23.27e6
    labels = np.concatenate([d.obs["cell_type"].astype(str).to_numpy() for d in data.values()])
    unit = result.embedding / np.linalg.norm(result.embedding, axis=1, keepdims=True)
    sample = np.random.default_rng(0).permutation(len(unit))[:2000]
    near = NearestNeighbors(n_neighbors=21, algorithm="brute").fit(unit).kneighbors(unit[sample])[1][:, 1:]
    same_batch = np.mean(result.dataset[near] == result.dataset[sample][:, None])
    same_label = np.mean(labels[near] == labels[sample][:, None])
    assert same_batch < 0.62
    assert same_label > 0.8

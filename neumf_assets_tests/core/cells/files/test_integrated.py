from __future__ import annotations

import json
import subprocess
import warnings
from pathlib import Path

import anndata as ad
import anndata.tests.helpers
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from benchmarks.harness import interpreter_with
from neumf_assets.core.cells.clustering import cluster_cells
from neumf_assets.core.cells.files import integrated
from neumf_assets.core.cells.files.integrated import (
    ArmResult,
    build_integrated,
    describe_integrated,
    storable,
    write_integrated,
)
from neumf_assets.core.cells.neighbours import cell_graph, find_neighbours
from neumf_assets.core.cells.settings import ClusterSettings, IntegratedSettings
from neumf_assets.core.counts.store import save_counts
from neumf_assets.core.counts.stored import SomeCells, StoredCounts
from neumf_assets.core.errors import NeumfError
from neumf_assets_tests.core.cells.data import noise, simulated_counts

GENES_A = [f"GENE{i}" for i in range(0, 190)]
GENES_B = [f"GENE{i}" for i in range(199, 9, -1)]


def two_datasets() -> dict[str, ad.AnnData]:
    """Two datasets whose genes overlap in part and in another order, with one cell name in common."""
    first = simulated_counts(n_cells=60, seed=1)[0][:, GENES_A].copy()
    second = simulated_counts(n_cells=40, seed=2)[0][:, GENES_B].copy()
    second.obs_names = [f"d{i}" for i in range(39)] + ["c7"]
    second.obs["cell_type"] = second.obs["cell_type"].cat.rename_categories({"t0": "other"})
    second.obs["donor"] = "donor 1"
    second.obs.loc["d3", "cell_type"] = np.nan
    return {"a": first, "b": second}


def arm(n: int = 100, seed: int = 0) -> ArmResult:
    points = noise(n, seed=seed).embedding
    clusters = cluster_cells(points, cell_graph(find_neighbours(points, 19)), ClusterSettings(kmeans_k=3))
    loadings = pd.DataFrame(np.arange(6.0).reshape(3, 2), index=["GENE20", "GENE10", "GENE0"])
    return ArmResult(points, clusters, umap=points[:, :2], loadings={"W": loadings})


def whole() -> ad.AnnData:
    return build_integrated(
        two_datasets(),
        {"liger": arm(), "ineumf": arm(seed=1)},
        best_arm="ineumf",
        provenance={
            "study": "s",
            "seed": 3,
            "nothing": None,
            "datasets": {"a": {"sha256": "00"}},
            "seeds": [0, 1],
        },
    )


def test_counts_and_names_are_those_of_the_datasets() -> None:
    counts, result = two_datasets(), whole()
    for name, data in counts.items():
        rows = result.obs["dataset"] == name
        np.testing.assert_array_equal(result.obs.loc[rows, "cell"], data.obs_names)
        own = data[:, result.var_names].X.toarray()
        np.testing.assert_array_equal(result.layers["counts"][rows.to_numpy()].toarray(), own)
    assert result.layers["counts"].dtype == np.int32


def test_genes_that_a_dataset_did_not_measure_are_not_zeros() -> None:
    result = whole()
    assert list(result.var_names) == [gene for gene in GENES_A if gene in GENES_B]
    assert list(result.var["original_name"]) == list(result.var_names)


def test_genes_without_cells_in_one_dataset_stay_when_measured() -> None:
    counts = two_datasets()
    measured = {"a": [*GENES_A, "GENE195"], "b": GENES_B}
    result = build_integrated(counts, {}, measured=measured)
    assert "GENE195" in result.var_names
    assert "GENE5" not in result.var_names
    column = result.layers["counts"][:, result.var_names.get_loc("GENE195")].toarray().ravel()
    assert column[:60].sum() == 0
    np.testing.assert_array_equal(column[60:], counts["b"][:, "GENE195"].X.toarray().ravel())


def test_union_marks_what_was_not_measured() -> None:
    result = build_integrated(two_datasets(), {}, settings=IntegratedSettings(genes="union"))
    assert set(result.var_names) == set(GENES_A) | set(GENES_B)
    assert not result.var.loc["GENE5", "measured_in_b"]
    assert result.var.loc["GENE5", "measured_in_a"]


def test_colliding_cell_names_are_told_apart() -> None:
    result = whole()
    assert result.obs_names.is_unique
    assert {"c7_a", "c7_b"} <= set(result.obs_names)
    assert "c6" in result.obs_names
    assert list(result.obs.loc[["c7_a", "c7_b"], "cell"]) == ["c7", "c7"]


def test_labels_of_all_datasets_are_joined() -> None:
    obs = whole().obs
    assert set(obs["cell_type"].cat.categories) == {"t0", "t1", "t2", "other"}
    assert pd.isna(obs.loc["d3", "cell_type"])
    assert obs["donor"].isna().sum() == 60


def test_x_is_log_normalised_as_scanpy_does_it() -> None:
    result = whole()
    expected = ad.AnnData(result.layers["counts"].astype(np.float32))
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    np.testing.assert_allclose(result.X.toarray(), expected.X.toarray(), rtol=1e-5)


def test_arms_lie_where_the_contract_says() -> None:
    result = whole()
    for name in ("liger", "ineumf"):
        assert result.obsm[f"X_{name}"].shape == (100, 8)
        assert {f"{name}_leiden", f"{name}_kmeans", f"{name}_hdbscan"} <= set(result.obs)
        assert np.isnan(result.varm[f"{name}_W"]).any(axis=1).sum() == result.n_vars - 2
        np.testing.assert_array_equal(result.varm[f"{name}_W"][result.var_names.get_loc("GENE20")], [0, 1])
    np.testing.assert_array_equal(result.obsm["X_umap"], result.obsm["X_umap_ineumf"])
    assert (result.obs["leiden"] == result.obs["ineumf_leiden"]).all()
    assert not [column for column in result.obs if "_r0." in column]
    assert result.uns["neumf"]["main_arm"] == "ineumf"


def test_columns_of_the_users_stay_and_ours_get_a_prefix() -> None:
    counts = two_datasets()
    for data in counts.values():
        data.obs["leiden"], data.obs["liger_leiden"] = "mine", "also mine"
    made = arm()
    result = build_integrated(counts, {"liger": made}, best_arm="liger")
    assert set(result.obs["leiden"]) == {"mine"} and set(result.obs["liger_leiden"]) == {"also mine"}
    for name in ("neumf_leiden", "neumf_liger_leiden"):
        assert list(result.obs[name]) == list(made.clusters["leiden"]), "the clusters, not the user's column"


def test_round_trip_and_use_in_scanpy(tmp_path: Path) -> None:
    result = whole()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ad.ImplicitModificationWarning)
        result.write_h5ad(tmp_path / "integrated.h5ad")
    back = sc.read_h5ad(tmp_path / "integrated.h5ad")
    assert (back.layers["counts"] != result.layers["counts"]).nnz == 0
    assert list(back.obs_names) == list(result.obs_names)
    assert back.uns["neumf"]["study"] == "s"
    assert back.uns["neumf"]["datasets"]["a"]["sha256"] == "00"
    assert "nothing" not in back.uns["neumf"]
    assert list(back.uns["neumf"]["arms"]) == ["liger", "ineumf"]
    pd.testing.assert_series_equal(back.obs["cell_type"], result.obs["cell_type"])
    sc.pp.neighbors(back, use_rep="X_ineumf")
    sc.tl.rank_genes_groups(
        back, "leiden" if back.obs["leiden"].nunique() > 1 else "dataset", method="t-test"
    )
    axes = sc.pl.embedding(back, "X_umap", color="dataset", show=False)
    assert axes is not None


@pytest.mark.parametrize("genes", ["shared", "union"])
def test_the_file_written_in_parts_is_that_of_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, genes: str
) -> None:
    monkeypatch.setattr(integrated, "BLOCK_CELLS", 7)
    settings, arms = IntegratedSettings(genes=genes), {"liger": arm(88), "ineumf": arm(88, seed=1)}
    counts, stored = {}, {}
    for name, data in two_datasets().items():
        save_counts(data, tmp_path / name)
        kept = np.setdiff1d(np.arange(data.n_obs), np.arange(5, 17) if name == "a" else [])
        counts[name], stored[name] = data[kept].copy(), SomeCells(StoredCounts(tmp_path / name), kept)
    expected = build_integrated(counts, arms, provenance={"study": "s"}, settings=settings)
    expected.write_h5ad(tmp_path / "expected.h5ad")
    described = describe_integrated(stored, arms, provenance={"study": "s"}, settings=settings)
    write_integrated(described, stored, tmp_path / "parts.h5ad", settings)
    for data in stored.values():
        data.counts.__exit__(None, None, None)
    with h5py.File(tmp_path / "parts.h5ad") as parts, h5py.File(tmp_path / "expected.h5ad") as whole:
        assert set(parts) <= set(whole)
        assert "raw" not in parts
    found, wanted = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("parts", "expected"))
    for key, loadings in wanted.varm.items():  # NaN where the arm did not use a gene
        np.testing.assert_array_equal(found.varm.pop(key), loadings)
    wanted.varm = {}
    ad.tests.helpers.assert_equal(found, wanted, exact=True)


USE_IN_SCVI = """
import json, sys, warnings
import anndata, scvi
data = anndata.read_h5ad(sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    scvi.model.SCVI.setup_anndata(data, layer="counts", batch_key="dataset")
scvi.settings.seed = 0
model = scvi.model.SCVI(data, n_hidden=16, n_latent=4)
model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False)
registered = model.adata_manager.summary_stats
found = {name: int(registered[name]) for name in ("n_batch", "n_cells", "n_vars")}
found["warned"] = [str(one.message) for one in caught if "count data" in str(one.message)]
found["latent"] = list(model.get_latent_representation().shape)
print(json.dumps(found))
"""


def test_opens_and_trains_in_scvi_tools(tmp_path: Path) -> None:
    python = interpreter_with("scvi", "NEUMF_SCVI_PYTHON")
    if python is None:
        pytest.skip("scvi-tools is not installed (NEUMF_SCVI_PYTHON can name a Python with it)")
    result = whole()
    result.write_h5ad(tmp_path / "integrated.h5ad")
    done = subprocess.run(
        [python, "-c", USE_IN_SCVI, str(tmp_path / "integrated.h5ad")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert (found["n_batch"], found["n_cells"], found["n_vars"]) == (2, *result.shape)
    assert found["warned"] == []  # scvi-tools warns where the layer doesn't hold counts
    assert found["latent"] == [100, 4]


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(NeumfError, match="99 cells"):
        build_integrated(two_datasets(), {"liger": arm(99)})
    with pytest.raises(NeumfError, match="not among the arms"):
        build_integrated(two_datasets(), {"liger": arm()}, best_arm="other")
    counts = two_datasets()
    counts["b"].var_names = [f"ENSG{i}" for i in range(190)]
    with pytest.raises(NeumfError, match="No gene"):
        build_integrated(counts, {})


def test_one_dataset_needs_no_renaming() -> None:
    counts = {"a": two_datasets()["a"]}
    result = build_integrated(counts, {})
    assert list(result.obs_names) == list(counts["a"].obs_names)
    assert (result.layers["counts"] != sp.csr_matrix(counts["a"].X)).nnz == 0


def test_provenance_of_any_kind_can_be_stored() -> None:
    found = storable({"a/b": None, "c/d": [1, 2], "e": ["x", None, 3], "f": Path("x"), "g": {"h": True}})
    assert list(found) == ["c|d", "e", "f", "g"]
    assert found["e"].tolist() == ["x", "3"]
    assert found["f"] == "x"

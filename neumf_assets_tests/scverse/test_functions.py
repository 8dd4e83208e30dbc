"""The functions on AnnData: they write where they say, agree with the cores, and refuse in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import neumf_assets as na
from neumf_assets.core.cells.scoring.metrics import cross_batch_label_accuracy
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.simulate.study import simulate_study
from neumf_assets.core.errors import NeumfError

QUICK = {
    "neumf": {"epochs": 25, "gmf_size": 10, "n_genes": 400, "threads": 1},
    "liger": {"k": 10, "iterations": 15, "trial_iterations": 2, "n_genes": 400},
    "harmony": {"n_genes": 400},
    "pca": {"n_genes": 400},
}


@pytest.fixture(scope="module")
def simulated() -> ad.AnnData:
    """Two batches, their cells shuffled into one another."""
    settings = {
        "datasets": [
            {"name": "ctrl", "cells": 260, "library_mean": 400},
            {"name": "stim", "cells": 240, "library_mean": 400, "condition": "stimulated"},
        ],
        "genes": 600,
        "target_zero_share": 0.85,
        "seed": 1,
    }
    found = simulate_study(SimulatorSettings.model_validate(settings))
    data = ad.concat({name: one.counts for name, one in found.items()}, label="batch", index_unique="-")
    return data[np.random.default_rng(0).permutation(data.n_obs)].copy()


@pytest.mark.parametrize("method", ["neumf", "liger", "harmony", "pca"])
def test_cells_are_integrated_in_their_own_order(simulated: ad.AnnData, method: str) -> None:
    data = simulated.copy()
    na.integrate(data, "batch", method=method, **QUICK[method])
    points = data.obsm[f"X_{method}"]
    assert points.shape[0] == data.n_obs and np.isfinite(points).all()
    labels, batch = (pd.factorize(data.obs[key])[0] for key in ("cell_type", "batch"))
    right = cross_batch_label_accuracy(points, labels, batch)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert right is not None
    assert right > (cross_batch_label_accuracy(points, shuffled, batch) or 0) + 0.3


def test_a_neumf_model_is_returned_and_described(simulated: ad.AnnData) -> None:
    data = simulated.copy()
    model = na.tl.neumf(data, batch_key="batch", key_added="X_mine", **QUICK["neumf"])
    assert model.predict(np.arange(3)).shape == (3, len(model.gene_names))
    assert {"X_mine"} == set(data.obsm)
    assert data.uns["neumf"]["batch_key"] == "batch"
    assert '"epochs":25' in data.uns["neumf"]["settings"]


def test_ligers_shared_factors_lie_beside_the_genes(simulated: ad.AnnData) -> None:
    data = simulated.copy()
    result = na.tl.liger(data, "batch", **QUICK["liger"])
    used = data.var_names.get_indexer(list(result.factors.genes))
    np.testing.assert_allclose(data.varm["liger_W"][used], result.factors.result.W.T, rtol=1e-6)
    assert np.isnan(np.delete(data.varm["liger_W"], used, axis=0)).all()


def test_labels_are_carried_over(simulated: ad.AnnData) -> None:
    data = simulated.copy()
    na.integrate(data, "batch", method="harmony", **QUICK["harmony"])
    truth = data.obs["cell_type"].astype(str)
    data.obs["known"] = truth.where(data.obs["batch"] == "ctrl")
    found = na.tl.transfer(data, "known", batch_key="batch", use_rep="X_harmony")
    asked = (data.obs["batch"] == "stim").to_numpy()
    assert (found.cells["best_guess"].to_numpy() == truth.to_numpy())[asked].mean() > 0.75
    assert data.obs["predicted_known"].astype(str).tolist() == found.cells["predicted"].tolist()
    assert data.obs["predicted_known_probability"].between(0, 1).all()


def test_conditions_are_compared_and_drawn(simulated: ad.AnnData) -> None:
    data = simulated.copy()
    data.obs["donor"] = np.char.add("p", (np.arange(data.n_obs) % 3).astype(str))
    options = {"condition": "condition", "replicate": "donor", "reference": "control"}
    shares, tests = na.tl.composition(data, "cell_type", **options)
    assert shares.groupby("sample")["share"].sum().to_numpy() == pytest.approx(1)
    assert set(tests["samples"]) == {"3 + 3"}
    found = na.tl.differential_expression(data, "cell_type", **options)
    assert (found.genes["p_adjusted"] <= 0.05).any()
    assert len(na.pl.composition(shares).axes) >= 1
    assert len(na.pl.volcano(found).axes) == found.genes["cell_type"].nunique()


def test_what_is_not_there_is_named(simulated: ad.AnnData) -> None:
    data = simulated.copy()
    with pytest.raises(NeumfError, match=r"obs has no column 'sample'\. Columns: .*batch"):
        na.integrate(data, "sample")
    with pytest.raises(NeumfError, match="no method 'scanorama'"):
        na.integrate(data, "batch", method="scanorama")
    with pytest.raises(NeumfError, match=r"no layer 'raw'\. Layers: none"):
        na.tl.neumf(data, layer="raw")
    with pytest.raises(NeumfError, match="obsm has no 'X_neumf'; integrate the cells first"):
        na.tl.transfer(data, "cell_type")
    data.obs["half"] = data.obs["batch"].astype(object).where(np.arange(data.n_obs) % 2 == 0)
    with pytest.raises(NeumfError, match=r"obs\['half'\] is missing for 250 cells"):
        na.integrate(data, "half")
    data.X = data.X / 2
    with pytest.raises(NeumfError, match="X does not hold raw counts"):
        na.integrate(data, "batch")


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",c1,c2,c3\nG1,1,0,2\nG2,0,3,0\nG3,1,1,0\nG4,5,0,0\n")
    assert na.read(tmp_path / "a.csv").X.sum() == 13


def test_they_load_no_dagster() -> None:
    code = (
        "import sys, neumf_assets as na; na.integrate, na.tl.neumf, na.read; print('dagster' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

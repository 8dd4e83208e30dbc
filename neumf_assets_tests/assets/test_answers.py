"""A study of two samples under each of two conditions, one without labels: what it answers."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
from rich.console import Console

from neumf_assets.commands.run import run_study
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.simulate.study import simulate_study
from neumf_assets.home import Home
from neumf_assets_tests.conftest import use_home

SIMULATED = SimulatorSettings.model_validate(
    {
        "datasets": [
            {"name": name, "cells": cells, "condition": condition, "library_mean": 400}
            for name, cells, condition in (
                ("rest1", 260, "control"),
                ("rest2", 240, "control"),
                ("ifn1", 250, "stimulated"),
                ("ifn2", 230, "stimulated"),
            )
        ],
        "genes": 600,
        "target_zero_share": 0.85,
        "seed": 5,
    }
)
STUDY = """
name: answers
inbox: {inbox}
label_column: cell_type
arms: [harmony]
model: {{kind: gmf, gmf_size: 4, epochs: 2, threads: 1}}
evaluation: {{baselines: [gene_mean]}}
clusters: {{resolutions: [0.4], default_resolution: 0.4, seeds: [0], methods: [leiden]}}
umap: {{n_epochs: 10}}
conditions: {{reference: rest}}
markers: {{lists: {lists}}}
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, pd.Series]:
    """The home of the finished study, and the types of the cells whose labels were taken away."""
    root = tmp_path_factory.mktemp("answers")
    write_inbox(SIMULATED, root / "inbox")
    hidden = root / "inbox" / "ifn2.labels.csv"
    truth = pd.read_csv(hidden, index_col=0)["cell_type"]
    hidden.unlink()
    (root / "inbox" / "samples.csv").write_text(
        "sample,condition\n" + "".join(f"{name},{name[:-1]}\n" for name in ("rest1", "rest2", "ifn1", "ifn2"))
    )
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, root / "home")
        home = Home.from_environment()
        home.prepare()
        (home.studies / "answers.yaml").write_text(
            STUDY.format(inbox=root / "inbox", lists=json.dumps(marker_lists()))
        )
        console = Console(record=True, width=200)
        assert run_study("answers", None, console) == 0, console.export_text()
    return home, truth


def marker_lists() -> dict[str, list[str]]:
    """The simulator's own markers of two types, and a gene that is nowhere."""
    truth = simulate_study(SIMULATED)["ifn1"].truth
    return {
        name: [truth.symbols[gene] for gene in truth.markers[name]] + ["NOWHERE"]
        for name in ("CD14 Mono", "B")
    }


def results(answered: tuple[Home, pd.Series]) -> Path:
    return answered[0].results("answers")


def test_cells_without_a_label_get_one(answered: tuple[Home, pd.Series]) -> None:
    table = pd.read_parquet(results(answered) / "cell_labels.parquet")
    own = table[table["dataset"] == "ifn2"].set_index("cell")
    assert own["label"].isna().all()
    assert table.loc[table["dataset"] != "ifn2", "label"].notna().all()
    right = own["best_guess"] == answered[1].reindex(own.index)
    assert right.mean() > 0.75
    whole = ad.read_h5ad(results(answered) / "integrated.h5ad")
    assert whole.obs["predicted_cell_type"].astype(str).tolist() == table["predicted"].tolist()
    assert whole.obs["predicted_cell_type_probability"].between(0, 1).all()


def test_the_genes_of_the_response_are_found(answered: tuple[Home, pd.Series]) -> None:
    table = pd.read_csv(results(answered) / "differential_expression.csv")
    assert set(table["condition"]) == {"ifn"} and set(table["reference"]) == {"rest"}
    found = set(table.loc[(table["p_adjusted"] <= 0.05) & (table["log2_fold_change"] > 0), "gene"])
    truth = simulate_study(SIMULATED)["ifn1"].truth
    raised = [truth.response_genes, *truth.specific_response_genes.values()]
    planted = {truth.symbols[gene] for genes in raised for gene in genes}
    assert len(found & planted) >= 5
    assert len(found & planted) / len(found) > 0.8


def test_clusters_get_names_by_lists_of_genes(answered: tuple[Home, pd.Series]) -> None:
    home = answered[0]
    markers = home.store().get(("answers", "markers"))
    suggested = pd.read_parquet(markers.path / "suggested.parquet").set_index("cluster")["suggested"]
    whole = ad.read_h5ad(results(answered) / "integrated.h5ad").obs
    main = pd.crosstab(whole["leiden"], whole["predicted_cell_type"]).idxmax(axis=1)
    for name in ("CD14 Mono", "B"):
        assert name in set(suggested), "the type has a cluster"
        assert name in set(main[suggested.index[suggested == name]])
    assert "Suggested name" in (results(answered) / "report.html").read_text()
    by_label = pd.read_parquet(results(answered) / "label_markers.parquet")
    assert set(by_label.loc[by_label["cluster"] == "B", "gene"].head(5)) & set(marker_lists()["B"])


def test_composition_is_of_samples(answered: tuple[Home, pd.Series]) -> None:
    shares = pd.read_csv(results(answered) / "composition.csv")
    assert shares.groupby("sample")["share"].sum().to_numpy() == pytest.approx(1)
    assert set(shares["replicate"]) == {"rest1", "rest2", "ifn1", "ifn2"}
    tests = pd.read_csv(results(answered) / "composition_tests.csv")
    assert (tests["p_adjusted"] > 0.05).all(), "the datasets are drawn alike"


def test_report_and_summary_tell_of_it(answered: tuple[Home, pd.Series]) -> None:
    report = (results(answered) / "report.html").read_text()
    for section in ("labels", "composition", "differences"):
        assert f'<section id="{section}">' in report
    assert "every dataset is a replicate of its own" in report
    summary = json.loads((results(answered) / "summary.json").read_text())
    assert summary["labels"]["cells without a label"] == 230
    assert summary["labels"]["held out"] == "datasets"
    assert summary["conditions"]["compared"] == "yes"
    assert summary["conditions"]["reference"] == "rest"
    assert summary["conditions"]["genes found"] > 0

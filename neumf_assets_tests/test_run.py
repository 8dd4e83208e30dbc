"""``neumf-assets run`` on real files: everything materialised, nothing twice, bad files told and left out."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from rich.console import Console

from neumf_assets.cli import main
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.simulate import write_inbox
from neumf_assets.core.counts.simulate_settings import SimulatorSettings
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.home import Home
from neumf_assets.runner import run_study
from neumf_assets.studies import find_or_register

QUICK = """
label_column: cell_type
model: {epochs: 3, pretrain_epochs: 2, tower: [16, 8], gmf_size: 8, mlp_size: 8, threads: 1}
ineumf: {kind: gmf, gmf_size: 8, epochs: 4, threads: 1}
evaluation: {baselines: [gene_mean, svd]}
liger: {k: 8, iterations: 10, trial_iterations: 2}
clusters: {resolutions: [0.4, 0.8], default_resolution: 0.4, seeds: [0, 1], hdbscan_min_size: 10}
umap: {n_epochs: 30}
"""


def _fill(inbox: Path) -> None:
    settings = {"datasets": [["ctrl", 150, "control"], ["stim", 120, "stimulated"]], "genes": 400, "seed": 3}
    write_inbox(SimulatorSettings.model_validate(settings), inbox)


def _register(inbox: Path, name: str = "tiny") -> Home:
    folders = Home.from_environment()
    folders.prepare()
    find_or_register(folders, name, str(inbox))
    path = folders.studies / f"{name}.yaml"
    path.write_text(path.read_text() + QUICK)
    return folders


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=200, force_terminal=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home and an inbox after a complete run, and what the run printed; tests work on copies of it."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("NEUMF_STORAGE", "NEUMF_DEVICE", "NEUMF_EXECUTOR", "DAGSTER_HOME"):
            environment.delenv(name, raising=False)
        environment.setenv("NEUMF_HOME", str(root / "home"))
        _fill(root / "inbox")
        _register(root / "inbox")
        console = Console(record=True, width=200, force_terminal=False)
        status = run_study("tiny", str(root / "inbox"), console)
        shown = console.export_text()
        assert status == 0, shown
    return root, shown


@pytest.fixture
def study(finished: tuple[Path, str], home: Path, tmp_path: Path) -> Home:
    """A copy of the finished study, with an inbox of its own."""
    root, _ = finished
    shutil.copytree(root / "home", home)
    shutil.copytree(root / "inbox", tmp_path / "inbox")
    path = home / "studies" / "tiny.yaml"
    path.write_text(path.read_text().replace(str(root / "inbox"), str(tmp_path / "inbox")))
    return Home.from_environment()


def _materialised(home: Home) -> int:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        return sum(
            len(instance.fetch_materializations(key, limit=1000).records) for key in instance.get_asset_keys()
        )


def _version(home: Home, *key: str) -> str:
    return home.store().get(("tiny", *key)).manifest.version


def test_a_folder_becomes_a_study_with_results(study: Home, finished: tuple[Path, str]) -> None:
    summary = json.loads((study.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim"}
    counts = load_counts(study.store().get(("tiny", "counts", "ctrl")).path)
    described = summary["datasets"]["ctrl"]
    assert (described["cells"], described["genes"]) == counts.shape
    assert described["zero_fraction"] == pytest.approx(1 - counts.X.nnz / (counts.n_obs * counts.n_vars))
    assert {"neumf", "gene_mean", "svd"} <= set(described["heldout_deviance"])
    assert set(summary["arms"]) == {"liger", "neumf_liger", "ineumf"}
    for scores in summary["arms"].values():
        assert {"n_clusters", "ari", "ari_best", "ari_mean", "ami", "ami_best", "nmi", "alignment"} <= set(
            scores
        )
        assert {"same_batch_neighbours", "expected_same_batch", "agreement", "seconds"} <= set(scores)
    assert summary["best_arm"] in summary["arms"]
    results = {path.name for path in study.results("tiny").iterdir()}
    assert {"summary.json", "report.html", "integrated.h5ad", "umap_liger.png", "markers.parquet"} <= results
    assert "report.html" in finished[1]
    assert "ineumf" in finished[1]


def test_the_report_shows_what_the_scores_are_by_chance(study: Home) -> None:
    stored = study.store().get(("tiny", "comparison"))
    chance = json.loads((stored.path / "comparison.json").read_text())["chance"]
    scores = json.loads((study.results("tiny") / "summary.json").read_text())["arms"]["liger"]
    assert abs(chance["ari_mean"]) < 0.05 < 0.2 < scores["ari_mean"]
    assert abs(chance["ami_mean"]) < 0.05 < 0.2 < scores["ami_mean"]
    assert chance["cross_batch_label_accuracy"] < scores["cross_batch_label_accuracy"] - 0.2
    assert "Shuffled data" in (study.results("tiny") / "report.html").read_text()


def test_names_survive_from_source_to_dense_matrix_and_h5ad(study: Home) -> None:
    import anndata as ad

    raw = load_counts(study.store().get(("tiny", "raw_counts", "ctrl")).path)
    assert raw.var["original_name"].duplicated().any()  # the simulator names one gene twice
    model = NeuMFModel.load(study.store().get(("tiny", "neumf_model", "ctrl")).path)
    dense = ad.read_zarr(study.store().get(("tiny", "dense_counts", "ctrl")).path / "dense.zarr")
    assert dense.var_names.tolist() == model.gene_names.tolist()
    assert set(dense.var_names) <= set(raw.var_names)
    assert set(dense.obs_names) <= set(raw.obs_names)
    whole = ad.read_h5ad(study.results("tiny") / "integrated.h5ad")
    assert set(whole.var_names) == set(raw.var_names)
    own = whole[whole.obs["dataset"] == "ctrl"]
    expected = raw[own.obs["cell"].to_numpy(), whole.var_names].X
    assert abs(own.layers["counts"] - expected).sum() == 0
    assert {"X_umap", "X_ineumf", "X_liger"} <= set(whole.obsm)
    assert {"leiden", "cell_type", "dataset"} <= set(whole.obs)
    assert whole.uns["neumf"]["study"] == "tiny"


def test_running_again_recomputes_nothing_and_says_so(study: Home, console: Console) -> None:
    before = _materialised(study)
    assert run_study("tiny", None, console) == 0
    assert _materialised(study) == before
    assert "Nothing to do" in console.export_text()


def test_only_what_depends_on_a_changed_setting_runs_again(study: Home, console: Console) -> None:
    model, umap = _version(study, "neumf_model", "ctrl"), _version(study, "liger", "umap")
    clusters = _version(study, "liger", "clusters")
    path = study.studies / "tiny.yaml"
    path.write_text(path.read_text().replace("n_epochs: 30", "n_epochs: 31"))
    assert run_study("tiny", None, console) == 0
    assert _version(study, "neumf_model", "ctrl") == model
    assert _version(study, "liger", "clusters") == clusters
    assert _version(study, "liger", "umap") != umap


def test_a_new_dataset_adds_only_its_own_work(study: Home, console: Console, tmp_path: Path) -> None:
    version = _version(study, "neumf_model", "ctrl")
    shutil.copy(tmp_path / "inbox" / "stim.csv.gz", tmp_path / "inbox" / "third.csv.gz")
    assert run_study("tiny", None, console) == 0
    assert _version(study, "neumf_model", "ctrl") == version
    summary = json.loads((study.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim", "third"}


def test_a_bad_file_is_told_without_a_traceback_and_the_others_go_on(
    study: Home, console: Console, tmp_path: Path
) -> None:
    bad = tmp_path / "inbox" / "broken.csv.gz"
    bad.write_bytes(gzip.compress(b",c1,c2\ng1,1,x\ng2,0,3\n"))
    assert run_study("tiny", None, console) == 1
    shown = " ".join(console.export_text().split())
    assert "broken.csv.gz" in shown
    assert "line 2, column 3 ('c2')" in shown
    assert "Traceback" not in shown
    summary = json.loads((study.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim"}
    with dg.DagsterInstance.from_config(str(study.dagster)) as instance:
        assert set(instance.get_dynamic_partitions("tiny_datasets")) == {"ctrl", "stim"}


def test_a_label_file_that_changes_is_noticed(study: Home, console: Console, tmp_path: Path) -> None:
    before = _version(study, "raw_counts", "ctrl")
    path = tmp_path / "inbox" / "ctrl.labels.csv"
    path.write_text(path.read_text().replace("NK", "natural killer"))
    assert run_study("tiny", None, console) == 0
    assert _version(study, "raw_counts", "ctrl") != before


def test_matrices_are_exported_with_their_names(study: Home, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert main(["export", str(target), "--study", "tiny"]) == 0
    assert main(["export", str(target), "--study", "tiny", "--format", "mtx", "--dataset", "stim"]) == 0
    model = NeuMFModel.load(study.store().get(("tiny", "neumf_model", "ctrl")).path)
    table = pl.read_csv(gzip.decompress((target / "ctrl.csv.gz").read_bytes()))
    assert table.columns[1:] == model.cell_names.tolist()
    assert table[:, 0].to_list() == model.gene_names.tolist()
    np.testing.assert_allclose(table[:, 1:].to_numpy().T, model.predict(), rtol=1e-5)
    counts = load_counts(study.store().get(("tiny", "counts", "stim")).path)
    again = read_counts(target / "stim", ReadSettings())
    assert (again.X != counts.X).nnz == 0
    assert list(again.obs_names) == list(counts.obs_names)


def test_exporting_what_is_not_there_says_what_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Home.from_environment().prepare()
    assert main(["export", "out", "--study", "nothing"]) == 2
    assert "example" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no/such/folder"], "is no folder"),
        (["run", "--study", "bad name"], "Use 1 to 64 letters"),
        (["run", "--study", "unknown"], "Give an inbox"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told

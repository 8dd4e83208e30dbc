"""``neumf-assets run`` on real files: everything materialised, nothing twice, bad files told and left out."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from rich.console import Console

from neumf_assets.assets.catalogue import stages
from neumf_assets.cli import main
from neumf_assets.commands.run import run_study
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.definitions.studies import find_or_register, read_study
from neumf_assets.home import Home
from neumf_assets.running.file_lock import FileLock
from neumf_assets.study.settings import ARMS
from neumf_assets_tests.conftest import use_home

QUICK = """
label_column: cell_type
model: {epochs: 3, pretrain_epochs: 2, tower: [16, 8], gmf_size: 8, mlp_size: 8, threads: 1}
ineumf: {kind: gmf, gmf_size: 8, epochs: 4, threads: 1}
evaluation: {baselines: [gene_mean, svd]}
liger: {k: 8, iterations: 10, trial_iterations: 2}
clusters: {resolutions: [0.4, 0.8], default_resolution: 0.4, seeds: [0, 1], hdbscan_min_size: 10}
umap: {n_epochs: 30, tsne: true}
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
        use_home(environment, root / "home")
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


@pytest.fixture
def one_arm(study: Home) -> Home:
    """That copy, with one arm: for what is about files, not about arms."""
    path = study.studies / "tiny.yaml"
    path.write_text(path.read_text().replace(", tsne: true", "") + "arms: [liger]\n")
    return study


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
    assert set(summary["arms"]) == set(ARMS)
    for scores in summary["arms"].values():
        assert {"n_clusters", "ari", "ari_best", "ari_mean", "ami", "ami_best", "nmi", "alignment"} <= set(
            scores
        )
        assert {"same_batch_neighbours", "expected_same_batch", "agreement", "seconds"} <= set(scores)
        assert 0 <= scores["cross_batch_label_accuracy"] <= 1
    assert set(summary) == {
        *("study", "datasets", "left_out", "arms", "best_arm", "labels", "conditions", "versions")
    }
    assert summary["left_out"] == {}
    source = (finished[0] / "inbox" / "ctrl.csv.gz").read_bytes()
    assert described["sha256"] == hashlib.sha256(source).hexdigest()
    assert {"neumf-assets", "torch", "dagster"} <= set(summary["versions"])
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
    assert dense.var["original_name"].tolist() == raw.var.loc[dense.var_names, "original_name"].tolist()
    second = raw.var_names[raw.var["original_name"].duplicated()][0]
    assert second in dense.var_names
    assert dense.var.loc[second, "original_name"] == raw.var.loc[second, "original_name"] != second
    assert set(dense.var_names) <= set(raw.var_names)
    assert set(dense.obs_names) <= set(raw.obs_names)
    whole = ad.read_h5ad(study.results("tiny") / "integrated.h5ad")
    assert set(whole.var_names) == set(raw.var_names)
    assert whole.var["original_name"].tolist() == raw.var.loc[whole.var_names, "original_name"].tolist()
    assert whole.var["original_name"].duplicated().sum() == 1
    own = whole[whole.obs["dataset"] == "ctrl"]
    expected = raw[own.obs["cell"].to_numpy(), whole.var_names].X
    assert abs(own.layers["counts"] - expected).sum() == 0
    assert {"X_umap", "X_ineumf", "X_liger"} <= set(whole.obsm)
    assert {"leiden", "cell_type", "dataset"} <= set(whole.obs)
    assert whole.uns["neumf"]["study"] == "tiny"


def test_tsne_is_made_where_the_study_asks_for_it(study: Home) -> None:
    import anndata as ad

    table = pl.read_parquet(study.store().get(("tiny", "liger", "umap")).path / "umap.parquet")
    whole = ad.read_h5ad(study.results("tiny") / "integrated.h5ad")
    points = table.select("tsne_1", "tsne_2").to_numpy()
    np.testing.assert_array_equal(whole.obsm["X_tsne_liger"], points)
    assert np.isfinite(points).all()
    assert points.std(axis=0).min() > 0


def test_tables_have_the_columns_that_are_documented(study: Home) -> None:
    """Every column of the files is described, and the other way round; ``*`` stands for any."""
    settings = read_study(study.studies / "tiny.yaml")
    seen = 0
    for declared in stages(settings):
        if not declared.columns:
            continue
        key = ("tiny", *declared.name, *(("ctrl",) if declared.per_dataset else ()))
        folder = study.store().get(key).path
        files = sorted(folder.glob("*.parquet"), key=lambda path: path.name != "long.parquet")
        documented = [name for name, _, _ in declared.columns]
        columns = list(pl.read_parquet_schema(files[0]))
        for name in columns:
            assert any(fnmatch(name, pattern) for pattern in documented), (key, name)
        for pattern in documented:
            assert any(fnmatch(name, pattern) for name in columns), (key, pattern)
        seen += 1
    assert seen == 22


def test_every_materialisation_shows_its_figures(study: Home) -> None:
    shown = _metadata(study)
    assert len(shown) == 2 * 6 + 33
    for key, entries in shown.items():
        assert {"seconds", "peak memory (MiB)", "size (MiB)", "files", "provenance"} <= set(entries), key
        assert entries["size (MiB)"].value > 0
        assert 50 < entries["peak memory (MiB)"].value < 8192
    sparse = {"cells", "genes", "zeros (share)"}
    assert {*sparse, "non-zero counts", "SHA-256 of the source"} <= set(shown["tiny/raw_counts", "ctrl"])
    assert {*sparse, "quality control", "dropped", "cells read"} <= set(shown["tiny/counts", "ctrl"])
    assert {*sparse, "rows"} <= set(shown["tiny/long_counts", "ctrl"])
    for model in (("tiny/neumf_model", "stim"), ("tiny/ineumf/model", None)):
        assert {"loss curve", "training loss", "validation loss", "epochs", "device"} <= set(shown[model])
        assert shown[model]["device"].value in ("cpu", "cuda")
        assert len(shown[model]["loss curve"].value) < 1000  # longer Markdown hides behind a button
    for arm in ARMS:
        picture = shown[f"tiny/{arm}/umap", None]["map of the cells"].value
        assert picture.startswith("![UMAP](data:image/png;base64,")
        assert len(picture) < 300_000 * 4 / 3
        assert {"ARI", "AMI", "scores explained"} <= set(shown[f"tiny/{arm}/metrics", None])


def _metadata(folders: Home) -> dict[tuple[str, str | None], Mapping[str, dg.MetadataValue]]:
    """The metadata of the latest materialisation of every asset and partition."""
    found = {}
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        for key in instance.get_asset_keys():
            for record in instance.fetch_materializations(key, limit=100, ascending=True).records:
                event = record.asset_materialization
                assert event is not None
                found[key.to_user_string(), event.partition] = event.metadata
    return found


def test_running_again_recomputes_nothing_and_says_so(study: Home, console: Console) -> None:
    before = _materialised(study)
    assert run_study("tiny", None, console) == 0
    assert _materialised(study) == before
    assert "Nothing to do" in console.export_text()


def test_only_what_depends_on_a_changed_setting_runs_again(study: Home, console: Console) -> None:
    model, umap = _version(study, "neumf_model", "ctrl"), _version(study, "liger", "umap")
    clusters = _version(study, "liger", "clusters")
    path = study.studies / "tiny.yaml"
    path.write_text(path.read_text().replace("n_epochs: 30, tsne: true", "n_epochs: 31"))
    assert run_study("tiny", None, console) == 0
    assert _version(study, "neumf_model", "ctrl") == model
    assert _version(study, "liger", "clusters") == clusters
    assert _version(study, "liger", "umap") != umap


def test_a_new_dataset_adds_only_its_own_work(one_arm: Home, console: Console, tmp_path: Path) -> None:
    version = _version(one_arm, "neumf_model", "ctrl")
    with gzip.open(tmp_path / "inbox" / "stim.csv.gz", "rt") as table:
        others = [line.rstrip().rpartition(",")[0] for line in table]  # a cell fewer: no copy of stim
    (tmp_path / "inbox" / "third.csv").write_text("\n".join(others) + "\n")
    assert run_study("tiny", None, console) == 0
    assert _version(one_arm, "neumf_model", "ctrl") == version
    summary = json.loads((one_arm.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim", "third"}


def test_a_bad_file_is_told_without_a_traceback_and_the_others_go_on(
    one_arm: Home, console: Console, tmp_path: Path
) -> None:
    bad = tmp_path / "inbox" / "broken.csv.gz"
    bad.write_bytes(gzip.compress(b",c1,c2\ng1,1,x\ng2,0,3\n"))
    assert run_study("tiny", None, console) == 1
    shown = " ".join(console.export_text().split())
    assert "broken.csv.gz" in shown
    assert "line 2, column 3 (row 'g1', column 'c2')" in shown
    assert "Traceback" not in shown
    summary = json.loads((one_arm.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim"}
    with dg.DagsterInstance.from_config(str(one_arm.dagster)) as instance:
        assert set(instance.get_dynamic_partitions("tiny_datasets")) == {"ctrl", "stim"}


def test_normalised_values_run_through_where_the_study_allows_them(
    home: Path, console: Console, tmp_path: Path
) -> None:
    import anndata as ad

    _fill(tmp_path / "simulated")
    data = read_counts(tmp_path / "simulated" / "ctrl.csv.gz")
    data = data[np.asarray(data.X.sum(axis=1)).ravel() > 0].copy()
    sizes = np.asarray(data.X.sum(axis=1))
    logged = data.X.multiply(1e4 / sizes).tocsr().astype(np.float32).log1p()
    (tmp_path / "inbox").mkdir()
    ad.AnnData(logged, obs=data.obs).write_h5ad(tmp_path / "inbox" / "ctrl.h5ad")
    folders = _register(tmp_path / "inbox")
    assert run_study("tiny", None, console) == 1
    told = " ".join(console.export_text().split())
    assert "the values are log-normalised" in told
    assert "set allow_normalised: true" in told

    path = folders.studies / "tiny.yaml"
    path.write_text(path.read_text() + "read: {allow_normalised: true}\narms: [liger]\n")
    assert run_study("tiny", None, console) == 0, console.export_text()
    summary = json.loads((folders.results("tiny") / "summary.json").read_text())
    assert summary["datasets"]["ctrl"]["heldout_deviance"] == {"neumf": None}  # molecules cannot be split
    assert pl.read_parquet(folders.results("tiny") / "markers.parquet").is_empty()
    long = pl.read_parquet(folders.store().get(("tiny", "long_counts", "ctrl")).path / "long.parquet")
    assert long["expression"].dtype == pl.Float32
    whole = ad.read_h5ad(folders.results("tiny") / "integrated.h5ad")
    assert whole.n_obs == summary["datasets"]["ctrl"]["cells"]


def test_a_label_file_that_changes_is_noticed(one_arm: Home, console: Console, tmp_path: Path) -> None:
    before = _version(one_arm, "raw_counts", "ctrl")
    path = tmp_path / "inbox" / "ctrl.labels.csv"
    path.write_text(path.read_text().replace("NK", "natural killer"))
    assert run_study("tiny", None, console) == 0
    assert _version(one_arm, "raw_counts", "ctrl") != before


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
        (["run", ".", "--study", "example"], "or choose another --study name."),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_a_link_to_nothing_is_refused_and_the_others_go_on(
    one_arm: Home, tmp_path: Path, console: Console
) -> None:
    (tmp_path / "inbox" / "late.csv").symlink_to(tmp_path / "nowhere.csv")
    assert run_study("tiny", None, console) == 1
    shown = " ".join(console.export_text().split())
    assert "late.csv: does not exist: it is a link whose target is gone" in shown
    summary = json.loads((one_arm.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim"}


def test_a_dataset_of_a_few_cells_is_left_out_and_the_others_go_on(
    one_arm: Home, tmp_path: Path, console: Console
) -> None:
    with gzip.open(tmp_path / "inbox" / "ctrl.csv.gz", "rt") as table:
        few = [",".join(line.rstrip().split(",")[:6]) for line in table]
    (tmp_path / "inbox" / "few.csv").write_text("\n".join(few) + "\n")
    assert run_study("tiny", None, console) == 1
    shown = " ".join(console.export_text().split())
    assert "few.csv: holds 5 cells that pass quality control (of 5), fewer than 20" in shown
    summary = json.loads((one_arm.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim"}


def test_what_is_left_out_is_named_with_its_reason_in_terminal_summary_and_report(
    one_arm: Home, tmp_path: Path, console: Console
) -> None:
    inbox = tmp_path / "inbox"
    with gzip.open(inbox / "ctrl.csv.gz", "rt") as table:
        head, *rows = table.read().splitlines()
    mouse = [head] + [
        f"{gene.capitalize()},{counts}" for gene, _, counts in (row.partition(",") for row in rows)
    ]
    (inbox / "mouse.csv").write_text("\n".join(mouse) + "\n")
    (inbox / "zcopy.csv").write_text("\n".join([head, *rows]) + "\n")
    (inbox / "broken.csv").write_text(",c1,c2\ng1,1,x\ng2,0,3\n")
    (inbox / "lost.csv").symlink_to(tmp_path / "nowhere.csv")
    assert run_study("tiny", None, console) == 1
    shown = " ".join(console.export_text(clear=False).split())
    summary = json.loads((one_arm.results("tiny") / "summary.json").read_text())
    report = (one_arm.results("tiny") / "report.html").read_text()
    assert set(summary["datasets"]) == {"ctrl", "stim"}
    for name, reason in (
        ("mouse", "are of mouse"),
        ("zcopy", "the same counts of the same cells as ctrl"),
        ("broken", "line 2, column 3"),
        ("lost.csv", "target is gone"),
    ):
        assert reason in summary["left_out"][name]
        assert reason in shown and f"{name} is left out of this study" in report
    assert one_arm.store().find(("tiny", "neumf_model", "mouse")) is not None, "its own results stay"
    before = _materialised(one_arm)
    assert run_study("tiny", None, console) == 1, "what is still left out is still told"
    with dg.DagsterInstance.from_config(str(one_arm.dagster)) as instance:
        check = dg.AssetCheckKey(dg.AssetKey(["tiny", "gene_space"]), "all_datasets_fit")
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
        assert not record.event.asset_check_evaluation.passed
    assert _materialised(one_arm) == before
    for name in ("mouse.csv", "zcopy.csv", "broken.csv", "lost.csv"):
        (inbox / name).unlink()
    assert run_study("tiny", None, console) == 0
    assert json.loads((one_arm.results("tiny") / "summary.json").read_text())["left_out"] == {}


def test_a_sample_sheet_names_samples_and_tells_of_their_cells(
    one_arm: Home, tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    import anndata as ad

    (tmp_path / "inbox" / "samples.csv").write_text(
        "sample,path,condition,age,min_genes\nhealthy,ctrl.csv.gz,rest,34.5,\nstim,,interferon,60,14\n"
    )
    path = one_arm.studies / "tiny.yaml"
    path.write_text(path.read_text() + "batch_column: condition\n")
    assert run_study("tiny", None, console) == 0, console.export_text()
    summary = json.loads((one_arm.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"healthy", "stim"}
    result = ad.read_h5ad(one_arm.results("tiny") / "integrated.h5ad")
    told = result.obs.groupby("dataset", observed=True)[["condition", "age"]].first()
    assert told.loc["healthy"].tolist() == ["rest", 34.5] and told.loc["stim"].tolist() == ["interferon", 60]
    assert result.obs["age"].dtype.kind == "f" and "cell_type" in result.obs, (
        "labels beside the file are kept"
    )
    assert result.obs.loc[result.obs["dataset"] == "stim", "qc_genes"].min() >= 14
    assert result.obs.loc[result.obs["dataset"] == "healthy", "qc_genes"].min() < 14
    (tmp_path / "inbox" / "samples.csv").write_text("sample,path\nhealthy,ctrl.csv.gz\nstim\n")
    assert main(["run", "--study", "tiny"]) == 2
    assert "samples.csv, line 3: has 1 fields, the header 2" in capsys.readouterr().err


def test_an_empty_inbox_makes_no_study_and_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README.md").write_text("nothing yet")
    assert main(["run", str(tmp_path / "in"), "--study", "void"]) == 2
    assert "There is no dataset in" in capsys.readouterr().err
    assert not list((home / "studies").glob("*.yaml"))


def test_a_renamed_file_is_not_counted_twice_and_a_kept_one_stays(
    one_arm: Home, tmp_path: Path, console: Console
) -> None:
    (tmp_path / "inbox" / "stim.csv.gz").rename(tmp_path / "inbox" / "patient.csv.gz")
    (tmp_path / "inbox" / "stim.labels.csv").rename(tmp_path / "inbox" / "patient.labels.csv")
    assert run_study("tiny", None, console) == 0
    assert "stim: its file is gone from the inbox, so it leaves the study" in console.export_text()
    summary = json.loads((one_arm.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "patient"}
    path = one_arm.studies / "tiny.yaml"
    path.write_text(path.read_text() + "keep: [ctrl]\n")
    (tmp_path / "inbox" / "ctrl.csv.gz").unlink()
    (tmp_path / "inbox" / "ctrl.labels.csv").unlink()
    assert run_study("tiny", None, console) == 0
    assert "Nothing to do" in console.export_text()


def test_a_study_is_brought_up_to_date_by_one_command_at_a_time(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = FileLock(Home.from_environment().locks / "run-example.lock")
    assert lock.acquire(study="example")
    try:
        assert run_study("example", None) == 1
    finally:
        lock.release()
    said = " ".join(capsys.readouterr().out.split())
    assert f"Study example is being brought up to date already, by process {os.getpid()}" in said
    with dg.DagsterInstance.from_config(str(Home.from_environment().dagster)) as instance:
        assert instance.get_runs() == []

"""``neumf-assets run`` on real files: everything materialised, nothing twice, bad files told and left out."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import dagster as dg
import pytest
from rich.console import Console

from neumf_assets.core.counts.simulate import write_inbox
from neumf_assets.core.counts.simulate_settings import SimulatorSettings
from neumf_assets.home import Home
from neumf_assets.runner import run_study
from neumf_assets.studies import find_or_register

QUICK = """
label_column: cell_type
model: {epochs: 4, pretrain_epochs: 2, tower: [16, 8], gmf_size: 8, mlp_size: 8}
ineumf: {kind: gmf, gmf_size: 8, epochs: 4}
evaluation: {baselines: [gene_mean, svd]}
liger: {k: 8, iterations: 10, trial_iterations: 2}
clusters: {resolutions: [0.4, 0.8], default_resolution: 0.4, seeds: [0, 1], hdbscan_min_size: 10}
umap: {n_epochs: 30}
"""


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    settings = SimulatorSettings.model_validate(
        {"datasets": [["ctrl", 150, "control"], ["stim", 120, "stimulated"]], "genes": 400, "seed": 3}
    )
    write_inbox(settings, folder)
    return folder


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=200, force_terminal=False)


def _register(home: Path, inbox: Path, name: str = "tiny") -> Home:
    folders = Home.from_environment()
    folders.prepare()
    find_or_register(folders, name, str(inbox))
    path = folders.studies / f"{name}.yaml"
    path.write_text(path.read_text() + QUICK)
    return folders


def _materialised(home: Home) -> int:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        return sum(
            len(instance.fetch_materializations(key, limit=1000).records) for key in instance.get_asset_keys()
        )


def test_a_folder_becomes_a_study_with_results(home: Path, inbox: Path, console: Console) -> None:
    folders = _register(home, inbox)
    assert run_study("tiny", str(inbox), console) == 0, console.export_text()
    summary = json.loads((folders.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim"}
    assert summary["datasets"]["ctrl"]["cells"] == 150
    assert 0.9 < summary["datasets"]["ctrl"]["zero_fraction"] < 0.99
    assert set(summary["arms"]) == {"liger", "neumf_liger", "ineumf"}
    assert summary["best_arm"] in summary["arms"]
    assert 0 < summary["arms"]["ineumf"]["ari_best"] <= 1
    results = {path.name for path in folders.results("tiny").iterdir()}
    assert {"summary.json", "report.html", "integrated.h5ad", "umap_liger.png"} <= results
    shown = console.export_text()
    assert "report.html" in shown
    assert "ineumf" in shown


def test_running_again_recomputes_nothing_and_says_so(home: Path, inbox: Path, console: Console) -> None:
    folders = _register(home, inbox)
    assert run_study("tiny", None, console) == 0
    before = _materialised(folders)
    again = Console(record=True, width=200)
    assert run_study("tiny", None, again) == 0
    assert _materialised(folders) == before
    assert "Nothing to do" in again.export_text()


def test_only_what_depends_on_a_changed_setting_runs_again(home: Path, inbox: Path, console: Console) -> None:
    folders = _register(home, inbox)
    assert run_study("tiny", None, console) == 0
    store = folders.store()
    model = store.get(("tiny", "neumf_model", "ctrl")).manifest.version
    umap = store.get(("tiny", "liger", "umap")).manifest.version
    path = folders.studies / "tiny.yaml"
    path.write_text(path.read_text().replace("n_epochs: 30", "n_epochs: 31"))
    assert run_study("tiny", None, console) == 0
    assert store.get(("tiny", "neumf_model", "ctrl")).manifest.version == model
    assert store.get(("tiny", "liger", "umap")).manifest.version != umap


def test_a_new_dataset_adds_only_its_own_work(home: Path, inbox: Path, console: Console) -> None:
    third = inbox.parent / "third.csv.gz"
    shutil.move(inbox / "stim.csv.gz", third)
    labels = inbox.parent / "stim.labels.csv"
    shutil.move(inbox / "stim.labels.csv", labels)
    folders = _register(home, inbox)
    assert run_study("tiny", None, console) == 0
    version = folders.store().get(("tiny", "neumf_model", "ctrl")).manifest.version
    shutil.move(third, inbox / "stim.csv.gz")
    shutil.move(labels, inbox / "stim.labels.csv")
    assert run_study("tiny", None, console) == 0
    assert folders.store().get(("tiny", "neumf_model", "ctrl")).manifest.version == version
    summary = json.loads((folders.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim"}


def test_a_bad_file_is_told_without_a_traceback_and_the_others_go_on(
    home: Path, inbox: Path, console: Console
) -> None:
    (inbox / "broken.csv.gz").write_bytes(gzip.compress(b",c1,c2\ng1,1,x\ng2,0,3\n"))
    folders = _register(home, inbox)
    assert run_study("tiny", None, console) == 1
    shown = console.export_text()
    assert "broken" in shown
    assert "Traceback" not in shown
    summary = json.loads((folders.results("tiny") / "summary.json").read_text())
    assert set(summary["datasets"]) == {"ctrl", "stim"}
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        assert set(instance.get_dynamic_partitions("tiny_datasets")) == {"ctrl", "stim"}


def test_a_label_file_that_changes_is_noticed(home: Path, inbox: Path, console: Console) -> None:
    folders = _register(home, inbox)
    assert run_study("tiny", None, console) == 0
    before = folders.store().get(("tiny", "raw_counts", "ctrl")).fingerprint
    path = inbox / "ctrl.labels.csv"
    path.write_text(path.read_text().replace("NK", "natural killer"))
    assert run_study("tiny", None, console) == 0
    assert folders.store().get(("tiny", "raw_counts", "ctrl")).fingerprint != before

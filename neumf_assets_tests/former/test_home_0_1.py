"""What version 0.1 left behind is opened and gone on with; nothing is computed again that did not change."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from rich.console import Console
from scipy.sparse import csr_matrix

from neumf_assets.assets.catalogue import stages
from neumf_assets.commands.run import run_study
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.neumf.dense import open_dense
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.definitions.studies import read_study
from neumf_assets.home import Home
from neumf_assets_tests.conftest import use_home

ARCHIVE = Path(__file__).with_name("home_0_1.tar.xz")
CHANGED_SINCE = frozenset({"raw_counts"})
"""Stages whose results differ by now on purpose, so that their version was raised."""


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    study = tmp_path / "home" / "studies" / "tiny.yaml"
    study.write_text(study.read_text().replace("@ROOT@", str(tmp_path)))
    use_home(monkeypatch, tmp_path / "home")
    yield Home.from_environment()


def _versions(home: Home) -> dict[str, str]:
    """The version in use of every artifact, by its path."""
    root = Path(home.storage) / "tiny"
    return {
        str(path.parent.relative_to(root)): home.store()
        .get(("tiny", *path.parent.relative_to(root).parts))
        .manifest.version
        for path in root.rglob("manifest.json")
    }


def _affected(home: Home) -> set[str]:
    """The stages that depend on one that was changed on purpose."""
    found = set(CHANGED_SINCE)
    for item in stages(read_study(home.studies / "tiny.yaml")):  # upstream first
        if found & set(item.inputs):
            found.add(item.path)
    return found


def test_a_home_opens_and_nothing_that_did_not_change_is_computed_again(former: Home) -> None:
    before = _versions(former)
    console = Console(record=True, width=200, force_terminal=False)
    assert run_study("tiny", None, console) == 0
    now = _versions(former)
    assert set(before) <= set(now)
    changed = {name for name in before if now[name] != before[name]}
    affected = _affected(former)
    assert not {name for name in changed if name not in affected and name.rpartition("/")[0] not in affected}
    if not affected:
        assert "Nothing to do: everything is up to date." in console.export_text()
    with dg.DagsterInstance.from_config(str(former.dagster)) as instance:
        assert len([run for run in instance.get_runs() if run.is_success]) >= 3  # those of version 0.1


def test_a_dataset_that_arrives_leaves_what_was_made_of_the_others(former: Home, tmp_path: Path) -> None:
    before = _versions(former)
    with gzip.open(tmp_path / "inbox" / "ctrl.csv.gz", "rt") as table:
        others = [line.rstrip().rpartition(",")[0] for line in table]  # a cell fewer: no copy of ctrl
    (tmp_path / "inbox" / "late.csv").write_text("\n".join(others) + "\n")
    assert run_study("tiny", None, Console(record=True, width=200, force_terminal=False)) == 0
    now = _versions(former)
    affected = _affected(former)
    for name in ("neumf_model/ctrl", "neumf_model/stim", "counts/ctrl"):
        assert now[name] == before[name] or name.rpartition("/")[0] in affected
    assert now["neumf_model/late"]
    assert now["ineumf/model"] != before["ineumf/model"]


def test_counts_models_and_dense_matrices_are_read(former: Home) -> None:
    store = former.store()
    counts = load_counts(store.get(("tiny", "counts", "ctrl")).path)
    assert counts.shape == (57, 146)
    assert counts.X.dtype == np.int32 and counts.X.sum() > 0
    model = NeuMFModel.load(store.get(("tiny", "neumf_model", "ctrl")).path)
    matrix, cells, genes = open_dense(store.get(("tiny", "dense_counts", "ctrl")).path / "dense.zarr")
    assert list(cells) == list(counts.obs_names)
    positions = [list(genes).index(name) for name in model.gene_names]
    # written by another processor, perhaps: float32 sums of some dozen terms, and their exponential
    np.testing.assert_allclose(matrix[:][:, positions], model.predict(), rtol=1e-3)


def test_a_training_that_was_broken_off_goes_on(tmp_path: Path, former: Home) -> None:
    counts = csr_matrix(np.random.default_rng(0).poisson(1.0, (40, 30)))
    settings = NeuMFSettings(
        kind="gmf", gmf_size=4, epochs=6, patience=None, threads=1, checkpoint_seconds=0.0
    )
    names = {"gene_names": [f"g{i}" for i in range(30)], "cell_names": [f"c{i}" for i in range(40)]}
    epochs: list[int] = []

    def note(stage: str, done: int, total: int, **figures: float) -> None:
        epochs.append(done)

    continued = fit(counts, settings, **names, checkpoint_dir=tmp_path / "checkpoint", progress=note)
    # a checkpoint of another torch, or of settings that were other ones then, is begun anew
    assert epochs in ([3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    fresh = fit(counts, settings, **names)
    np.testing.assert_allclose(continued.predict(), fresh.predict(), rtol=1e-3)

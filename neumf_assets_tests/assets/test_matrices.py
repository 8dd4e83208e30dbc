"""What a study's factors and its integrative model stand for: top genes, and matrices to export."""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import polars as pl
import pytest

from benchmarks.stages import StagedStudy
from neumf_assets.assets.integrate import factor_genes
from neumf_assets.assets.stage import Step
from neumf_assets.cli import main
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.definitions.studies import all_studies
from neumf_assets.home import Home

STUDY = """
name: tiny
inbox: {inbox}
liger: {{k: 6, iterations: 20, restarts: 1, top_genes: 12}}
ineumf: {{gmf_size: 6, epochs: 20, threads: 1}}
"""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> StagedStudy:
    """A registered study whose factors and integrative model are there."""
    root = tmp_path_factory.mktemp("matrices")
    data = {"datasets": [["ctrl", 150, "control"], ["stim", 120, "stimulated"]], "genes": 400, "seed": 3}
    write_inbox(SimulatorSettings.model_validate(data), root / "inbox")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("NEUMF_STORAGE", raising=False)
        environment.setenv("NEUMF_HOME", str(root / "home"))
        home = Home.from_environment()
        home.prepare()
        (home.studies / "tiny.yaml").write_text(STUDY.format(inbox=root / "inbox"))
        study = StagedStudy(all_studies(home).found["tiny"], ("ctrl", "stim"), home.root)
    for path in ("raw_counts", "counts", "gene_space", "shared_genes", "liger/factors", "ineumf/model"):
        study.compute(path)
    return study


def exported(staged: StagedStudy, target: Path, matrix: str, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    monkeypatch.delenv("NEUMF_STORAGE", raising=False)
    monkeypatch.setenv("NEUMF_HOME", str(staged.root))
    assert main(["export", str(target), "--study", "tiny", "--matrix", matrix, "--dataset", "stim"]) == 0
    return pl.read_csv(gzip.decompress((target / f"stim.{matrix}.csv.gz").read_bytes()))


def observed(staged: StagedStudy, table: pl.DataFrame) -> tuple[ad.AnnData, np.ndarray, np.ndarray]:
    counts = load_counts(staged.artifact("counts", "stim").path)
    assert table.columns[1:] == list(counts.obs_names)
    return counts, counts[:, table[:, 0].to_list()].X.toarray(), table[:, 1:].to_numpy().T


def test_as_many_top_genes_are_stored_as_asked_for(staged: StagedStudy) -> None:
    table = pl.read_parquet(staged.artifact("liger/factors").path / "top_genes.parquet")
    assert set(table["kind"]) == {"shared", "ctrl", "stim"}
    assert table["factor"].n_unique() == 6
    assert table["rank"].max() == 12


def test_the_reconstruction_has_the_counts_of_the_cells(
    staged: StagedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = exported(staged, tmp_path, "liger", monkeypatch)
    _, counts, found = observed(staged, table)
    assert np.corrcoef(found.ravel(), counts.ravel())[0, 1] > 0.4
    assert found.sum() / counts.sum() == pytest.approx(1, abs=0.25)


def test_the_corrected_matrix_is_without_the_datasets_own_part(
    staged: StagedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = exported(staged, tmp_path, "ineumf", monkeypatch)
    _, counts, found = observed(staged, table)
    assert np.corrcoef(found.ravel(), counts.ravel())[0, 1] > 0.3
    model = NeuMFModel.load(staged.artifact("ineumf/model").path)
    own = np.flatnonzero(model.dataset == model.dataset_names.index("stim"))
    np.testing.assert_allclose(found, model.predict(own, corrected=True), rtol=1e-5)
    assert not np.allclose(found, model.predict(own), rtol=0.05)


def test_counts_are_no_model_and_a_dataset_must_be_known(
    staged: StagedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEUMF_HOME", str(staged.root))
    wanted = ["export", str(tmp_path), "--study", "tiny", "--matrix", "liger"]
    assert main([*wanted, "--format", "mtx"]) == 2
    assert "--format csv" in capsys.readouterr().err
    assert main([*wanted, "--dataset", "other"]) == 2
    assert "ctrl, stim" in capsys.readouterr().err


def test_the_report_lists_the_first_of_the_top_genes(staged: StagedStudy) -> None:
    stored = staged.artifact("liger/factors")
    shown = factor_genes(Step(staged.study, {"liger/factors": stored}), "liger")
    table = pl.read_parquet(stored.path / "top_genes.parquet").sort("rank")
    for number, factor in enumerate(shown):
        for kind, genes in (("shared", factor.shared), *factor.specific.items()):
            own = table.filter((pl.col("factor") == number) & (pl.col("kind") == kind))
            assert list(genes) == own["gene"].to_list()[:10]
    assert len(shown) == 6

"""LIGER with several k and lambda: a stage that a study asks for, and its place in the report."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pandas as pd

from benchmarks.stages import StagedStudy
from neumf_assets.assets.catalogue import stages
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.definitions.study import study_definitions
from neumf_assets.study.settings import StudySettings

ASKED = {"k": [6, 4, 8], "lam": [1.0, 20.0]}


def names_of(study: StudySettings) -> set[str]:
    return {item.path for item in stages(study)}


def test_there_is_no_sweep_unless_asked_for() -> None:
    assert "liger/sweep" not in names_of(StudySettings(name="a"))
    without_liger = StudySettings.model_validate({"name": "a", "arms": ["ineumf"], "sweep": ASKED})
    assert "liger/sweep" not in names_of(without_liger)


def test_an_asked_for_sweep_is_an_asset_that_the_report_shows() -> None:
    study = StudySettings.model_validate({"name": "a", "sweep": ASKED})
    declared = {item.path: item for item in stages(study)}
    assert "liger/sweep" in declared["report"].inputs
    graph = study_definitions(study).resolve_asset_graph()
    assert dg.AssetKey(["a", "liger", "sweep"]) in graph.get_all_asset_keys()


def test_every_setting_is_factorised_and_more_factors_fit_better(tmp_path: Path) -> None:
    data = {"datasets": [["ctrl", 150, "control"], ["stim", 120, "stimulated"]], "genes": 400, "seed": 3}
    write_inbox(SimulatorSettings.model_validate(data), tmp_path / "inbox")
    study = StudySettings.model_validate(
        {"name": "a", "inbox": str(tmp_path / "inbox"), "sweep": ASKED, "liger": {"k": 6, "iterations": 30}}
    )
    staged = StagedStudy(study, ("ctrl", "stim"), tmp_path)
    for path in ("raw_counts", "counts", "gene_space", "shared_genes", "liger/sweep"):
        staged.compute(path)
    table = pd.read_parquet(staged.artifact("liger/sweep").path / "sweep.parquet")
    by_k, by_lam = (table[table["varied"] == varied] for varied in ("k", "lambda"))
    assert by_k["k"].tolist() == [4, 6, 8]
    assert by_k["objective"].is_monotonic_decreasing
    assert by_k["divergence"].is_monotonic_increasing
    assert by_lam["lam"].tolist() == [1.0, 20.0]
    assert by_lam["objective"].is_monotonic_increasing
    assert (by_lam["k"] == 6).all()

"""A whole study with next to no memory allowed: every stage finds its way, says so, and the result is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from neumf_assets.commands.run import run_study
from neumf_assets.core import memory
from neumf_assets.core.cells import embedding, neighbours
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.definitions.studies import find_or_register
from neumf_assets.home import Home
from neumf_assets.study.settings import ARMS

QUICK = """
label_column: cell_type
model: {kind: gmf, epochs: 2, gmf_size: 8, threads: 1, window_cells: 64}
ineumf: {kind: gmf, gmf_size: 8, epochs: 3, threads: 1, window_cells: 64}
evaluation: {baselines: [gene_mean], ranking: "off"}
liger: {k: 8, batch_cells: 50, epochs: 3}
clusters: {resolutions: [0.4], default_resolution: 0.4, seeds: [0], methods: [leiden]}
umap: {n_epochs: 30}
metrics: {null_cells: 0}
"""


@pytest.mark.slow
def test_a_study_that_may_hold_nothing_in_memory_is_computed_all_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = {"datasets": [["ctrl", 150, "control"], ["stim", 120, "stimulated"]], "genes": 400, "seed": 3}
    write_inbox(SimulatorSettings.model_validate(simulated), tmp_path / "inbox")
    folders = Home.from_environment()
    folders.prepare()
    find_or_register(folders, "tiny", str(tmp_path / "inbox"))
    path = folders.studies / "tiny.yaml"
    path.write_text(path.read_text() + QUICK)
    monkeypatch.setattr(memory, "budget", lambda: 1000)
    monkeypatch.setattr(embedding, "SAMPLE", 100)
    monkeypatch.setattr(neighbours, "LEAST_NODES", 150)
    console = Console(record=True, width=300, force_terminal=False)
    assert run_study("tiny", str(tmp_path / "inbox"), console) == 0, console.export_text()
    expected = {
        "raw_counts/ctrl": "8192 cells are read at a time",
        "neumf_model/stim": "Windows of 64 cells are read from disk",
        "neumf_evaluation/ctrl": "Set evaluation.max_cells lower",
        "liger/factors": "it learns online",
        "ineumf/model": "Windows of 64 cells are read from disk",
        "ineumf/cell_embedding": "The neighbours of",
        "liger/clusters": "joined to 150 nodes",
        "ineumf/umap": "100 of them are laid out",
    }
    store = folders.store()
    for name, said in expected.items():
        figures = store.get(("tiny", *name.split("/"))).manifest.figures
        assert any(said in note for note in figures["notes"]), (name, figures.get("notes"))
    for name in (
        "counts/ctrl",
        "long_counts/ctrl",
        "dense_counts/ctrl",
        "shared_genes",
        "integrated",
        "report",
    ):
        figures = store.get(("tiny", *name.split("/"))).manifest.figures
        assert "notes" not in figures, "works in parts however large the data"
    summary = json.loads((folders.results("tiny") / "summary.json").read_text())
    assert set(summary["arms"]) == set(ARMS)

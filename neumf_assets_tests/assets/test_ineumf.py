"""The arm of the integrative NeuMF for every kind of model that a study may ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.stages import StagedStudy
from neumf_assets.core.cells.files.store import CellEmbedding
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.study.settings import StudySettings


@pytest.mark.parametrize("kind", ["mlp", "neumf"])
def test_cells_have_an_embedding_whatever_the_kind(tmp_path: Path, kind: str) -> None:
    data = {"datasets": [["ctrl", 80, "control"], ["stim", 60, "stimulated"]], "genes": 400, "seed": 3}
    write_inbox(SimulatorSettings.model_validate(data), tmp_path / "inbox")
    model = {"kind": kind, "gmf_size": 5, "mlp_size": 7, "tower": [6, 4], "threads": 1}
    epochs = {"epochs": 2, "pretrain_epochs": 2, "fusion_epochs": 1}
    study = StudySettings.model_validate(
        {"name": "a", "inbox": str(tmp_path / "inbox"), "ineumf": model | epochs, "arms": ["ineumf"]}
    )
    staged = StagedStudy(study, ("ctrl", "stim"), tmp_path)
    for path in ("raw_counts", "counts", "gene_space", "ineumf/model", "ineumf/cell_embedding"):
        staged.compute(path)
    embedding = CellEmbedding.load(staged.artifact("ineumf/cell_embedding").path).embedding
    assert embedding.shape[1] == (6 if kind == "mlp" else 5)
    assert np.isfinite(embedding).all()

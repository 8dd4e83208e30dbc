"""An embedding with its neighbours, which no stage can cut into parts."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from neumf_assets.assets.integrate import _embedding_product
from neumf_assets.assets.stage import Step
from neumf_assets.settings import StudySettings


def test_neighbours_that_exceed_the_budget_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = Step(study=StudySettings(name="a"), inputs={})
    cells = pd.DataFrame({"cell": [f"c{i}" for i in range(200)], "dataset": "a"})
    embedding = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    _embedding_product(step, cells, embedding)
    assert not caplog.records
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 1000)
    assert _embedding_product(step, cells, embedding).figures["cells"] == 200
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "The neighbours of 200 cells would take" in caplog.text
    assert "a larger machine" in caplog.text

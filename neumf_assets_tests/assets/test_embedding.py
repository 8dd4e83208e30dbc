"""An embedding with its neighbours, which no stage can cut into parts."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from neumf_assets.assets.integrate import embedding_product
from neumf_assets.assets.stage import Step
from neumf_assets.study.settings import StudySettings


def test_neighbours_that_exceed_the_budget_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = Step(study=StudySettings(name="a"), inputs={})
    counts = AnnData(np.ones((200, 1)), obs=pd.DataFrame(index=[f"c{i}" for i in range(200)]))
    monkeypatch.setattr("neumf_assets.assets.integrate.stored_counts", lambda _: nullcontext({"a": counts}))
    embedding = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    embedding_product(step, embedding)
    assert not caplog.records
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 1000)
    assert embedding_product(step, embedding).figures["cells"] == 200
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "The neighbours of 200 cells would take" in caplog.text
    assert "a larger machine" in caplog.text

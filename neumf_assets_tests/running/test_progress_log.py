"""What the package says while it works reaches the run's log and the terminal."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import anndata as ad
import dagster as dg
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import sparse

from neumf_assets.commands.run import run_study
from neumf_assets.core import memory
from neumf_assets.definitions.studies import find_or_register
from neumf_assets.home import Home
from neumf_assets.running.progress_log import heard
from neumf_assets_tests.live import live_study, stubbed


def _h5ad(folder: Path) -> None:
    counts = np.random.default_rng(0).poisson(2.0, (40, 20))
    obs = pd.DataFrame(index=[f"c{i}" for i in range(40)])
    var = pd.DataFrame(index=[f"G{i}" for i in range(20)])
    ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var).write_h5ad(folder / "ctrl.h5ad")


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "budget", lambda: 100)


def test_the_runs_log_says_that_a_stage_works_from_disk(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed(monkeypatch)
    with live_study(tmp_path) as live:
        _h5ad(live.inbox)
        live.arrivals()  # the file has to be seen twice
        assert live.arrivals() == ["ctrl"]
        assert live.run_dataset("ctrl")
        logged = live.instance.all_logs(live.results[0].run_id)
        key = dg.AssetKey(["pbmc", "raw_counts"])
        event = live.instance.get_latest_materialization_event(key)
        untold = live.instance.get_latest_materialization_event(dg.AssetKey(["pbmc", "counts"]))
    said = [one for one in logged if "cells are read at a time" in one.user_message]
    assert [one.step_key for one in said] == ["pbmc__raw_counts"]
    assert said[0].level == logging.INFO
    assert "NEUMF_MEMORY" in said[0].user_message
    assert event is not None and event.asset_materialization is not None
    assert said[0].user_message in str(event.asset_materialization.metadata["notes"].value)
    assert untold is not None and untold.asset_materialization is not None
    assert "notes" not in untold.asset_materialization.metadata
    stored = Home.from_environment().store().get(("pbmc", "raw_counts", "ctrl"))
    assert stored.manifest.figures["notes"] == [said[0].user_message]


def test_the_terminal_says_it_too(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed(monkeypatch)
    (tmp_path / "in").mkdir()
    _h5ad(tmp_path / "in")
    folders = Home.from_environment()
    folders.prepare()
    find_or_register(folders, "tiny", str(tmp_path / "in"))
    path = folders.studies / "tiny.yaml"
    path.write_text(path.read_text() + "arms: [liger]\n")
    console = Console(record=True, width=300, force_terminal=False)
    assert run_study("tiny", str(tmp_path / "in"), console) == 0
    assert "ctrl: Reading" in (shown := console.export_text())
    assert "cells are read at a time" in shown


def test_only_this_threads_messages_are_heard_and_only_meanwhile() -> None:
    found: list[tuple[Any, ...]] = []
    logger = logging.getLogger("neumf_assets.core.some")
    before = logging.getLogger("neumf_assets").level
    with heard(lambda *one: found.append(one)):
        logger.info("%d cells", 3)
        other = threading.Thread(target=logger.warning, args=("elsewhere",))
        other.start()
        other.join()
        logger.debug("not this")
        logger.warning("slowly")
    logger.warning("afterwards")
    assert found == [(logging.INFO, "3 cells"), (logging.WARNING, "slowly")]
    assert logging.getLogger("neumf_assets").level == before

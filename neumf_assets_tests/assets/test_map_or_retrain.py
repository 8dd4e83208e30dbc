"""Datasets that arrive later are mapped onto the integrative model, or it is trained anew: as the study says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from neumf_assets.assets.catalogue import stages
from neumf_assets.core.counts.stored import StoredCounts
from neumf_assets.core.store import Artifact
from neumf_assets.freshness.plan import plan
from neumf_assets.home import Home
from neumf_assets.intake.in_use import digests_in_use
from neumf_assets.study.sources import find_sources
from neumf_assets.triggers.refresh import RETRAIN_TAG, retrain_requests
from neumf_assets_tests.live import Live, live_study, stubbed

REAL = frozenset({"raw_counts", "counts", "gene_space", "ineumf/model"})
SETTINGS: dict[str, Any] = {
    "arms": ["ineumf"],
    "read": {"orientation": "cells_by_genes"},
    "qc": {"min_genes": 1, "min_cells": 1, "fewest_cells": 1, "fewest_shared_genes": 1},
    "ineumf": {"kind": "gmf", "gmf_size": 3, "epochs": 2, "threads": 1},
}


def _csv(cells: int, seed: int) -> str:
    counts = np.random.default_rng(seed).poisson(1.5, (cells, 15))
    head = "," + ",".join(f"G{gene}" for gene in range(15))
    return (
        "\n".join([head, *(f"c{seed}-{i}," + ",".join(map(str, row)) for i, row in enumerate(counts))]) + "\n"
    )


@pytest.fixture
def start(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    stubbed(monkeypatch, real=REAL)
    opened = []

    def open_study(update: str) -> Live:
        context = live_study(tmp_path, **SETTINGS, update=update)
        opened.append(context)
        live = context.__enter__()
        live.put("a.csv", _csv(40, 1))
        live.put("b.csv", _csv(40, 2))
        live.settle()
        return live

    yield open_study
    for context in opened:
        context.__exit__(None, None, None)


def _model(live: Live) -> Artifact:
    return Home.from_environment().store().get((live.study.name, "ineumf", "model"))


def _stale(live: Live) -> list[str]:
    store = Home.from_environment().store()
    digests = digests_in_use(live.study, store, live.partitions(), find_sources(live.study).datasets)
    return [item.path for item in plan(live.study, stages(live.study), digests, store).study]


def test_a_small_arrival_is_mapped_and_nothing_is_out_of_date_afterwards(start: Any) -> None:
    live = start("auto")
    assert _model(live).manifest.figures["trained_on"] == {"a": 40, "b": 40}
    live.put("late.csv", _csv(10, 3))
    live.settle()
    figures = _model(live).manifest.figures
    assert figures["trained_on"] == {"a": 40, "b": 40}
    assert figures["mapped"] == {"late": 10}
    assert figures["cells"] == 90
    assert live.integrated() == ["a", "b", "late"]
    assert len(live.study_runs) == 2
    assert _stale(live) == []


def test_auto_trains_anew_when_the_mapped_share_grows_too_large(start: Any) -> None:
    live = start("auto")
    live.put("one.csv", _csv(10, 3))
    live.settle()
    live.put("two.csv", _csv(10, 4))  # 20 of 80 cells: above 20 %
    live.settle()
    assert _model(live).manifest.figures["mapped"] == {}
    assert set(_model(live).manifest.figures["trained_on"]) == {"a", "b", "one", "two"}


def test_auto_trains_anew_from_disk_where_mapping_would_exceed_the_budget(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start("auto")
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 1000)
    live.put("late.csv", _csv(10, 3))
    live.settle()
    assert set(_model(live).manifest.figures["trained_on"]) == {"a", "b", "late"}
    assert any("Mapping late would take" in text for text in _said(live))


def test_map_warns_of_what_exceeds_the_budget_and_maps_it(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start("map")
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 1000)
    live.put("late.csv", _csv(10, 3))
    live.settle()
    assert _model(live).manifest.figures["mapped"] == {"late": 10}
    assert any("With update: auto or retrain" in text for text in _said(live))


def _said(live: Live) -> list[str]:
    return [event.user_message for event in live.instance.all_logs(live.results[-1].run_id)]


def test_mapping_reads_only_what_is_new(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live, read = start("map"), set()
    rows = StoredCounts.rows

    def noted(counts: StoredCounts, first: int, last: int) -> Any:
        read.add(counts.shape[0])
        return rows(counts, first, last)

    def whole(*_: Any, **__: Any) -> None:
        raise AssertionError("a dataset is loaded whole")

    monkeypatch.setattr(StoredCounts, "rows", noted)
    monkeypatch.setattr("anndata.read_h5ad", whole)
    live.put("late.csv", _csv(10, 3))
    live.settle()
    assert _model(live).manifest.figures["mapped"] == {"late": 10}
    assert read == {10}


def test_map_maps_whatever_comes_and_again_what_changes(start: Any) -> None:
    live = start("map")
    live.put("big.csv", _csv(60, 3))
    live.settle()
    assert _model(live).manifest.figures["mapped"] == {"big": 60}
    live.put("big.csv", _csv(50, 5))
    live.settle()
    assert _model(live).manifest.figures["mapped"] == {"big": 50}
    assert _stale(live) == []


def test_a_change_of_what_was_trained_on_trains_anew(start: Any) -> None:
    live = start("map")
    live.put("a.csv", _csv(41, 6))
    live.settle()
    assert _model(live).manifest.figures["trained_on"] == {"a": 41, "b": 40}


def test_the_weekly_training_takes_in_what_was_mapped(start: Any) -> None:
    live = start("map")
    assert retrain_requests(live.study) == []
    live.put("late.csv", _csv(10, 3))
    live.settle()
    [request] = retrain_requests(live.study)
    assert request.tags[RETRAIN_TAG] == "true"
    keys = {key.path[-1] for key in request.asset_selection or ()}
    assert {"model", "cell_embedding", "comparison", "report"} <= keys
    assert "shared_genes" not in keys
    job = live.definitions.resolve_job_def("pbmc_integrate")
    job.execute_in_process(
        instance=live.instance, asset_selection=list(request.asset_selection or ()), tags=request.tags
    )
    assert set(_model(live).manifest.figures["trained_on"]) == {"a", "b", "late"}
    assert _stale(live) == []
    assert retrain_requests(live.study) == []


def test_asking_for_training_makes_a_mapped_model_out_of_date(start: Any) -> None:
    live = start("map")
    live.put("late.csv", _csv(10, 3))
    live.settle()
    live.use(live.study.model_copy(update={"update": "retrain"}))
    assert "ineumf/model" in _stale(live)


def test_the_model_keeps_the_digest_of_every_dataset(start: Any) -> None:
    live = start("retrain")
    origin = _model(live).manifest.figures["provenance"]
    store = Home.from_environment().store()
    for name in ("a", "b"):
        raw = store.get(("pbmc", "raw_counts", name))
        assert origin["datasets"][name] == raw.manifest.figures["sha256"]
    assert origin["seeds"] == {"ineumf.seed": 0}
    assert origin["versions"]["torch"]
    event = live.instance.get_latest_materialization_event(dg.AssetKey(["pbmc", "ineumf", "model"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert "provenance" in event.asset_materialization.metadata

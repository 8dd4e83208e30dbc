"""LIGER from disk: the same scaled counts, and online factors close to those of learning in memory."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from neumf_assets.core.counts.store import save_counts
from neumf_assets.core.counts.stored import StackedCounts, StoredCounts
from neumf_assets.core.liger.preprocess import gene_statistics, scale
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.liger.store import NamedFactors
from neumf_assets.core.liger.stored import (
    BYTES_PER_ENTRY,
    SHARE_BYTES_PER_ENTRY,
    StoredScaled,
    batch_pieces,
    factorise_stored,
)
from neumf_assets.core.processes import LocalProcesses
from neumf_assets.core.ray_workers import INMF
from neumf_assets_tests.core.neumf.problems import low_rank

GENES = [f"g{i}" for i in range(40)]
USED = np.arange(0, 40, 2)


@pytest.fixture
def datasets(tmp_path: Path) -> list[tuple[sp.csr_matrix, StoredScaled]]:
    """Scaled counts in memory and on disk."""
    found = []
    for number, cells in enumerate((300, 170)):
        counts, _, _ = low_rank(cells, 40, seed=number)
        obs = pd.DataFrame(index=[f"c{i}" for i in range(cells)])
        save_counts(ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES)), tmp_path / str(number))
        stored = StoredCounts(tmp_path / str(number))
        statistics = gene_statistics(StackedCounts.of({"all": stored}))
        used = StackedCounts.of({"used": stored}, [GENES[i] for i in USED])
        found.append((scale(counts, gene_statistics(counts), USED), StoredScaled(used, statistics, USED)))
    return found


def test_scaled_counts_are_those_of_memory(datasets: list[tuple[sp.csr_matrix, StoredScaled]]) -> None:
    for expected, stored in datasets:
        np.testing.assert_array_equal(stored.whole().toarray(), expected.toarray())
        cells = np.array([0, 3, 4, 5, 90, 168, 169])
        np.testing.assert_array_equal(stored[cells].toarray(), expected[cells].toarray())


@pytest.mark.parametrize(("cells", "batch"), [(1, 10), (1000, 64), (999, 5000), (10_000, 700)])
def test_batches_hold_every_cell_once_and_come_from_all_over(cells: int, batch: int) -> None:
    parts = batch_pieces(cells, batch)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(cells))
    if len(parts) > 1:
        assert all(np.ptp(part) > 0.5 * cells for part in parts)


def test_above_the_budget_it_learns_online_in_the_order_of_the_cells(
    datasets: list[tuple[sp.csr_matrix, StoredScaled]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = LigerSettings(k=3, batch_cells=64, epochs=20, restarts=1)
    stored = [one for _, one in datasets]
    monkeypatch.setenv("NEUMF_MEMORY", "1GiB")
    at_once = factorise_stored(stored, settings)
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 1000)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        online = factorise_stored(stored, settings)
    assert "learns online" in caplog.text
    assert "Set liger.batch_cells lower" in caplog.text
    assert (at_once.online, online.online) == (False, True)
    NamedFactors(online, ("a", "b"), tuple(GENES[i] for i in USED)).save(tmp_path)
    assert NamedFactors.load(tmp_path).result.online
    assert online.objective[-1] < 1.02 * at_once.objective[-1]
    for (expected, _), H, V in zip(datasets, online.H, online.V, strict=True):
        error = np.square(expected.toarray() - H @ (online.W + V)).sum()
        assert error < 0.9 * np.square(expected.toarray() - expected.toarray().mean(axis=0)).sum()


def test_only_the_genes_that_are_used_count(
    datasets: list[tuple[sp.csr_matrix, StoredScaled]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored = [one for _, one in datasets]
    used = sum(expected.nnz for expected, _ in datasets)
    assert sum(one.nnz for one in stored) == used < sum(one.counts.nnz for one in stored)
    read: list[int] = []
    rows = StackedCounts.rows

    def noted(counts: StackedCounts, start: int, stop: int) -> sp.csr_matrix:
        read.append(stop - start)
        return rows(counts, start, stop)

    monkeypatch.setattr(StackedCounts, "rows", noted)
    monkeypatch.setattr("neumf_assets.core.counts.stored.BLOCK_CELLS", 50)
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: BYTES_PER_ENTRY * used)
    settings = LigerSettings(k=3, iterations=3, restarts=1)
    assert not factorise_stored(stored, settings).online
    assert max(read) <= 50
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: SHARE_BYTES_PER_ENTRY * used - 1)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        found = factorise_stored(stored, settings.model_copy(update={"workers": 2}), launch=_never)
    assert found.online
    assert "in one process instead of 2" in caplog.text


def test_processes_get_what_exceeds_the_budget_from_disk(
    datasets: list[tuple[sp.csr_matrix, StoredScaled]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored = [one for _, one in datasets]
    settings = LigerSettings(k=3, iterations=5, restarts=2, trial_iterations=2, workers=2)
    launch = LocalProcesses(INMF, threads=1)
    work = tmp_path / "work"
    (work / "scaled-killed" / "0").mkdir(parents=True)
    in_memory = factorise_stored(stored, settings, launch=launch, folder=work)
    share = SHARE_BYTES_PER_ENTRY * sum(one.nnz for one in stored) // 2
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: share)

    def whole(_: StoredScaled) -> None:
        raise AssertionError("a dataset is read whole")

    monkeypatch.setattr(StoredScaled, "whole", whole)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        from_disk = factorise_stored(stored, settings, launch=launch, machines=2, folder=work)
    assert "2 processes get their cells from disk" in caplog.text
    assert not from_disk.online
    for one, other in zip([in_memory.W, *in_memory.H], [from_disk.W, *from_disk.H], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(work.iterdir())


def _never(*_: object) -> None:
    raise AssertionError("processes are started")

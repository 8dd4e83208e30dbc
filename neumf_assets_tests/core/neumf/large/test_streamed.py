"""Training from disk: the same model as in memory, memory that does not grow with the cells, and resumption."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from neumf_assets.core.counts.store import save_counts
from neumf_assets.core.counts.stored import StackedCounts, StoredCounts
from neumf_assets.core.neumf.checkpoint import data_hash
from neumf_assets.core.neumf.large import streamed as streamed_module
from neumf_assets.core.neumf.large.cell_files import CountFiles
from neumf_assets.core.neumf.large.parallel import ParallelTraining
from neumf_assets.core.neumf.large.streamed import fit_stored, fit_streamed
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.core.neumf.training.preparation import prepare
from neumf_assets.core.neumf.training.stages import initial_state
from neumf_assets.core.neumf.training.workers import Workers
from neumf_assets.core.processes import LocalProcesses
from neumf_assets.core.ray_workers import NEUMF
from neumf_assets_tests.core.neumf.problems import changed, low_rank

SIZES = (170, 90)


class InMemory:
    """Counts in memory, given out as those on disk are."""

    def __init__(self, counts: csr_matrix) -> None:
        self.counts, self.shape = counts, counts.shape

    def rows(self, start: int, stop: int) -> csr_matrix:
        return self.counts[start:stop]


def both(settings: NeuMFSettings, folder: Path) -> tuple[NeuMFModel, NeuMFModel]:
    """Train on two datasets in memory and from disk."""
    counts, _, _ = low_rank(cells=sum(SIZES), genes=70)
    named: dict[str, Any] = {
        "gene_names": [f"g{i}" for i in range(70)],
        "cell_names": [f"c{i}" for i in range(sum(SIZES))],
        "dataset": np.repeat([0, 1], SIZES),
        "dataset_names": ["a", "b"],
    }
    return fit(counts, settings, **named), fit_streamed(InMemory(counts), settings, folder=folder, **named)


def assert_same(first: NeuMFModel, second: NeuMFModel) -> None:
    for name, table in (first.tables | first.statistics).items():
        assert torch.equal(table, (second.tables | second.statistics)[name]), name
    assert torch.equal(first.log_size, second.log_size)
    assert first.provenance == second.provenance
    for one, other in zip(first.history, second.history, strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert one.get("validation_loss") == other.get("validation_loss")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "gmf", "patience": 1, "epochs": 8, "learning_rate": 0.3},
        {"pretrain": "both", "dropout": 0.2},
        {"kind": "gmf", "objective": "bce", "pairs": "sampled"},
        {"kind": "gmf", "block_genes": 20, "gradient_clip": 0.1, "n_genes": 50},
        {"objective": "nb", "validation_share": 0.0},
        {"gmf_size": None},
    ],
    ids=str,
)
def test_streaming_gives_the_model_of_training_in_memory_bit_for_bit(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    assert_same(*both(changed(window_cells=64, **{"epochs": 4, **changes}), tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_dimensions_are_found_from_the_same_sample_in_memory_and_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neumf_assets.core.neumf.training.preparation.GMF_SIZE_CELLS", 120)
    found = both(changed(window_cells=64, gmf_size=None, epochs=1, seed=3), tmp_path)
    assert_same(*found)
    assert found[0].settings.gmf_size == found[1].settings.gmf_size is not None


def test_a_streamed_model_is_stored_and_predicts(tmp_path: Path) -> None:
    first, second = both(changed(window_cells=64, epochs=2), tmp_path / "work")
    second.save(tmp_path / "model")
    again = NeuMFModel.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(), first.predict())
    np.testing.assert_array_equal(again.cell_embedding("gmf", "gene"), first.cell_embedding("gmf", "gene"))


@pytest.mark.parametrize("stop_after", [2, 5, 7])
def test_streamed_training_goes_on_where_it_was_stopped(tmp_path: Path, stop_after: int) -> None:
    settings = changed(
        window_cells=64, epochs=4, pretrain_epochs=4, fusion_epochs=4, patience=4, checkpoint_seconds=0.0
    )
    counts, _, _ = low_rank(cells=200, genes=60)
    named: dict[str, Any] = {
        "gene_names": np.arange(60).astype(str),
        "cell_names": np.arange(200).astype(str),
    }
    done = 0

    def stop(*_: object, **__: object) -> None:
        nonlocal done
        done += 1
        if done > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_streamed(InMemory(counts), settings, folder=tmp_path, progress=stop, **named)
    done = -100
    continued = fit_streamed(InMemory(counts), settings, folder=tmp_path, progress=stop, **named)
    assert done < -100 + 8  # epochs before the checkpoint are not repeated
    assert_same(fit(counts, settings, **named), continued)


def test_windows_of_cells_come_back_from_the_files(tmp_path: Path) -> None:
    counts, _, _ = low_rank(cells=50, genes=30)
    genes = np.array([1, 4, 5, 20, 29])
    files = CountFiles(tmp_path, InMemory(counts), genes)
    used = counts[:, genes]
    assert files.sha256 == data_hash(used)
    for cells in ([0], [49], [3, 4, 5, 9, 48, 49], range(50)):
        assert (files.of(np.array(cells)) != used[list(cells)]).nnz == 0


def stored(folder: Path, counts: csr_matrix, genes: list[str], prefix: str) -> StoredCounts:
    obs = pd.DataFrame(index=[f"{prefix}{i}" for i in range(counts.shape[0])])
    save_counts(ad.AnnData(counts.astype(np.int32), obs=obs, var=pd.DataFrame(index=genes)), folder)
    return StoredCounts(folder)


def test_above_the_budget_training_streams_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts, _, _ = low_rank(cells=300, genes=40)
    genes = [f"g{i}" for i in range(40)]
    parts = {
        "a": stored(tmp_path / "a", counts[:200], genes, "a"),
        "b": stored(tmp_path / "b", counts[200:, ::-1], genes[::-1], "b"),
    }
    stack = StackedCounts.of(parts)
    assert (stack.rows(0, 300) != counts).nnz == 0
    assert (stack.rows(150, 260) != counts[150:260]).nnz == 0
    named: dict[str, Any] = {
        "gene_names": genes,
        "cell_names": [*parts["a"].obs.index, *parts["b"].obs.index],
    }
    settings = changed(window_cells=64, epochs=2)
    monkeypatch.setenv("NEUMF_MEMORY", "1GiB")
    in_memory = fit_stored(stack, settings, folder=tmp_path / "work", **named)
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 1000)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        streamed = fit_stored(stack, settings, folder=tmp_path / "work", **named)
    assert "Windows of 64 cells are read from disk" in caplog.text
    assert "Set fewer window_cells" in caplog.text
    assert_same(in_memory, streamed)


@pytest.fixture
def in_parts(tmp_path: Path) -> tuple[StackedCounts, dict[str, Any]]:
    """Counts on disk, and their names."""
    counts, _, _ = low_rank(cells=200, genes=40)
    genes = [f"g{i}" for i in range(40)]
    stack = StackedCounts.of({"a": stored(tmp_path / "a", counts, genes, "a")})
    return stack, {"gene_names": genes, "cell_names": stack.parts[0].obs.index}


def test_fewer_cells_than_a_window_are_streamed_too(
    tmp_path: Path,
    in_parts: tuple[StackedCounts, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stack, named = in_parts
    settings = changed(epochs=2, n_genes=20)
    in_memory = fit_stored(stack, settings, folder=tmp_path / "work", **named)
    window = 20 * stack.rows(0, 200)[:, in_memory.gene_positions].nnz + 40 * 200 * 8
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: window)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        streamed = fit_stored(stack, settings, folder=tmp_path / "work", **named)
    assert "Windows of 200 cells are read from disk" in caplog.text
    assert "Set fewer window_cells" not in caplog.text
    assert_same(in_memory, streamed)


@pytest.mark.parametrize(("free", "streams"), [(1000, True), (1 << 30, False)])
def test_counts_that_exceed_the_gpu_are_streamed_however_much_memory_the_machine_has(
    tmp_path: Path,
    in_parts: tuple[StackedCounts, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: int,
    streams: bool,
) -> None:
    stack, named = in_parts
    chosen = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1 << 34))
    monkeypatch.setattr(streamed_module, "fit_streamed", lambda *_, **__: chosen.append(True))
    monkeypatch.setattr(streamed_module, "fit", lambda *_, **__: chosen.append(False))
    with caplog.at_level(logging.INFO, "neumf_assets"):
        fit_stored(stack, changed(), folder=tmp_path, device="cuda:0", **named)
    assert chosen == [streams]
    assert ("cuda:0 has free: they are read from disk" in caplog.text) == streams


def test_workers_get_counts_above_the_budget_from_disk(
    tmp_path: Path,
    in_parts: tuple[StackedCounts, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stack, named = in_parts
    settings = changed(epochs=2, n_genes=20, workers=2, precision="float32")
    training = ParallelTraining(2, LocalProcesses(NEUMF, threads=1))
    work: dict[str, Any] = {"folder": tmp_path / "work", "training": training, **named}
    in_memory = fit_stored(stack, settings, **work)
    share = 10 * stack.rows(0, 200)[:, in_memory.gene_positions].nnz + 20 * 200 * 8
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: share)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        streamed = fit_stored(stack, settings, machines=2, **work)
    assert "2 workers get their cells from disk" in caplog.text
    assert "Windows" not in caplog.text
    assert_same(in_memory, streamed)
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    caplog.clear()
    with caplog.at_level(logging.INFO, "neumf_assets"):
        alone = fit_stored(stack, settings, machines=1, **work)
    assert "by one process, not by 2 workers" in caplog.text
    np.testing.assert_allclose(alone.predict(), in_memory.predict(), rtol=1e-3)


def test_workers_of_this_machine_count_beside_the_whole(
    tmp_path: Path, in_parts: tuple[StackedCounts, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, named = in_parts
    chosen: list[bool] = []
    monkeypatch.setattr(streamed_module, "fit_streamed", lambda *_, **__: chosen.append(True))
    monkeypatch.setattr(streamed_module, "fit", lambda *_, **__: chosen.append(False))
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 28 * stack.nnz + 40 * 200 * 8)
    training = ParallelTraining(2, LocalProcesses(NEUMF, threads=1))
    for how in ({}, {"training": training, "machines": 2}, {"training": training}):
        fit_stored(stack, changed(), folder=tmp_path, **how, **named)
    assert chosen == [False, False, True]


class Third(Workers):
    """The second of three workers, which notes how many rows it is given."""

    rank, size, seen = 1, 3, 0

    def own_rows(self, table: torch.Tensor) -> torch.Tensor:
        self.seen = max(self.seen, len(table))
        return table[self.rank :: self.size].clone()


def test_a_worker_never_has_the_embeddings_of_all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, _, dataset = low_rank(cells=50)
    settings, factors = changed(kind="gmf"), np.ones(50, np.float32)
    monkeypatch.setattr("neumf_assets.core.neumf.network.DRAWN_CELLS", 7)
    data = prepare(counts, factors, dataset, settings, torch.device("cpu"))
    whole = initial_state(data, "gmf", 0, {}).tables["cells"]
    one = Third()
    own = initial_state(replace(data, workers=one, everyone=dataset), "gmf", 0, {}).tables["cells"]
    assert torch.equal(own, whole[1::3])
    assert one.seen <= 7 + 3


GROWTH = """
import json, sys, numpy as np, torch
from pathlib import Path
from typing import Any
from scipy.sparse import csr_matrix
from neumf_assets.core.measure import measured
from neumf_assets.core.neumf import network
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.large.streamed import fit_streamed

class Drawn:
    def __init__(self, cells): self.shape = (cells, 300)
    def rows(self, start, stop):
        rng = np.random.default_rng(start)
        n = stop - start
        genes = np.sort(rng.permuted(np.tile(np.arange(300, dtype=np.int32), (n, 1)), axis=1)[:, :60], axis=1)
        parts = rng.integers(1, 5, n * 60).astype(np.int32), genes.ravel(), np.arange(0, n * 60 + 1, 60)
        return csr_matrix(parts, shape=(n, 300))

torch.set_num_threads(1)
network.DRAWN_CELLS = 4096
settings = NeuMFSettings(kind="gmf", gmf_size=64, epochs=1, n_genes=None, window_cells=4096)
peaks = []
for cells in (8_000, 32_000, 64_000):
    with measured() as cost:
        model = fit_streamed(Drawn(cells), settings, gene_names=np.arange(300).astype(str),
                             cell_names=np.zeros(cells, "U1"), folder=Path(sys.argv[1]) / str(cells))
        del model
    peaks.append(cost.peak_mib)
print(json.dumps(peaks))
"""


def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    _, smaller, larger = json.loads(run.stdout.splitlines()[-1])
    in_memory = 32_000 * (60 * 16 + 65 * 4 * 4) / 2**20  # what twice the cells would add at the very least
    assert larger - smaller < 0.25 * in_memory

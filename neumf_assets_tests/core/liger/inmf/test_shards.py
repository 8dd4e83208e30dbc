"""iNMF by two real processes, each with half of the cells: the factors of one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.liger.inmf.sharded import inmf_by_workers
from neumf_assets.core.liger.inmf.shards import GroupShards
from neumf_assets.core.liger.inmf.solver import INMFResult, Search, inmf
from neumf_assets.core.liger.inmf.who_factorises import inmf_launch
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.processes import LocalProcesses
from neumf_assets.core.ray_workers import INMF, RayWorkers


def _counts(cells: int, seed: int) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.5, 1.0, (cells, 4)) @ rng.gamma(0.5, 1.0, (4, 30))
    return sp.csr_matrix(rng.poisson(means).astype(np.float32))


class Launched:
    """Two processes of this machine, one of which is killed once, in the middle of its work."""

    def __init__(self) -> None:
        self.killed = 0

    def __call__(self, folder: Path, size: int, poll: Callable[[], None]) -> None:
        def watched() -> None:
            poll()
            told = folder / "progress"
            if not self.killed and told.exists() and len(told.read_text().splitlines()) >= 10:
                self.killed = _process_of(folder, rank=1)
                os.kill(self.killed, signal.SIGKILL)

        LocalProcesses(INMF, threads=1)(folder, size, watched)


def _process_of(folder: Path, rank: int) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode().split("\0")
                if str(folder) in command and command[command.index(str(folder)) + 1] == str(rank):
                    return int(entry.name)
    raise AssertionError("no such process")


@pytest.fixture
def local() -> LocalProcesses:
    """Two processes of this machine."""
    return LocalProcesses(INMF, threads=1)


def _settings(iterations: int) -> LigerSettings:
    return LigerSettings(
        k=4, lam=1.0, iterations=iterations, restarts=2, trial_iterations=3, tol=0, workers=2
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names Linux's loopback interface")
def test_two_processes_find_the_factors_of_one(tmp_path: Path, local: LocalProcesses) -> None:
    data, told = [_counts(183, 0), _counts(120, 1)], []
    (tmp_path / "inmf-of-one-that-was-killed").mkdir()
    alone = inmf(data, _settings(25))
    found = inmf_by_workers(
        data, _settings(25), local, folder=tmp_path, progress=lambda *step, **_: told.append(step)
    )
    assert told[-1] == ("inmf", 25, 25)
    np.testing.assert_allclose(found.objective, alone.objective, rtol=1e-5)
    assert found.kkt == pytest.approx(alone.kkt, rel=0.05)
    assert found.trials == pytest.approx(alone.trials, rel=1e-5)
    for one, other in zip([found.W, *found.V, *found.H], [alone.W, *alone.V, *alone.H], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * max(1, other.max()))
    assert not list(tmp_path.iterdir())


def _same(one: INMFResult, other: INMFResult) -> bool:
    """Whether two results are the same bit for bit."""
    arrays = zip(
        [one.W, *one.V, *one.H, one.objective], [other.W, *other.V, *other.H, other.objective], strict=True
    )
    return one.trials == other.trials and all(np.array_equal(*pair) for pair in arrays)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names Linux's loopback interface")
def test_a_killed_process_is_replaced_and_the_result_is_the_same(
    tmp_path: Path, local: LocalProcesses
) -> None:
    data, launched, told = [_counts(183, 0), _counts(120, 1)], Launched(), []
    whole = inmf_by_workers(data, _settings(600), local)
    mended = inmf_by_workers(
        data,
        _settings(600),
        launched,
        folder=tmp_path,
        progress=lambda *step, **_: told.append(step),
        checkpoint_seconds=0.0,
    )
    assert launched.killed
    assert told.count(("inmf", 1, 600)) == 2, "each of two starts began once"
    assert _same(mended, whole)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names Linux's loopback interface")
def test_a_factorisation_that_was_broken_off_goes_on(tmp_path: Path, local: LocalProcesses) -> None:
    data, told = [_counts(183, 0), _counts(120, 1)], []

    def stop(stage: str, done: int, total: int, **figures: float) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inmf_by_workers(data, _settings(300), local, folder=tmp_path, progress=stop, checkpoint_seconds=0.0)
    again = inmf_by_workers(
        data, _settings(300), local, folder=tmp_path, progress=lambda *step, **_: told.append(step)
    )
    assert told[0][1] > 3, "after the trials"
    assert _same(again, inmf_by_workers(data, _settings(300), local))
    assert not list(tmp_path.iterdir())


class Keeps:
    """Keeps a search at one iteration, at which it breaks it off once."""

    def __init__(self, at: int) -> None:
        self.at, self.kept = at, ""
        self.tensors: dict[str, torch.Tensor] = {}

    def restore(self, stage: int, state: Search) -> bool:
        """Restore the search if it was kept."""
        if self.kept:
            state.restore(self.tensors, json.loads(self.kept))
        return bool(self.kept)

    def write(self, stage: int, state: Search) -> None:
        """Keep the search at that iteration."""
        if state.epoch == self.at and not self.kept:
            self.tensors, progress = state.stored()
            self.kept = json.dumps(progress)
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [2, 3, 6, 12, 13, 40])  # in the trials of four starts, between them, and later
def test_a_search_goes_on_from_where_it_was_kept(at: int) -> None:
    data, keeper = [_counts(61, 0), _counts(40, 1)], Keeps(at)
    settings = _settings(30).model_copy(update={"restarts": 4, "workers": 1, "tol": 1e-6})
    with pytest.raises(KeyboardInterrupt):
        inmf(data, settings, keeper=keeper)
    assert _same(inmf(data, settings, keeper=keeper), inmf(data, settings))


class Counted(GroupShards):
    """One process that counts what it would send."""

    def __init__(self) -> None:
        self.rank, self.size, self.summed_bytes = 0, 1, 0


def test_what_is_sent_does_not_depend_on_the_number_of_cells(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sent = []
        for factor in (1, 3):
            shards = Counted()
            settings = LigerSettings(k=4, lam=1.0, iterations=10, restarts=1, tol=0)
            inmf([_counts(factor * 61, 0), _counts(factor * 40, 1)], settings, shards=shards)
            sent.append(shards.summed_bytes)
    finally:
        torch.distributed.destroy_process_group()
    products, grams = 2 * 4 * 30 * 4, 2 * 4 * 4 * 8
    assert sent[0] == sent[1] == pytest.approx(12 * (products + grams), rel=0.05)


def test_too_many_workers_are_refused() -> None:
    settings = LigerSettings(k=10, workers=8)
    with pytest.raises(BadSettings, match="8 processes for 40 cells"):
        inmf_by_workers([_counts(61, 0), _counts(40, 1)], settings, LocalProcesses(INMF))


def test_who_factorises_follows_workers_and_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUMF_EXECUTOR", raising=False)
    assert inmf_launch(LigerSettings()) is None
    assert inmf_launch(LigerSettings(workers=2)) == LocalProcesses(INMF, threads=1)
    monkeypatch.setenv("NEUMF_EXECUTOR", "ray")
    assert inmf_launch(LigerSettings(workers=2, threads=3)) == RayWorkers(cpus=3, module=INMF)

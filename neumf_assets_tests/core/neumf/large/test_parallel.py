"""Training by two real processes: the model of one process, what is sent, and what a kill does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neumf_assets.core.errors import BadSettings, NeumfError
from neumf_assets.core.neumf.large.parallel import ParallelTraining
from neumf_assets.core.processes import LocalProcesses
from neumf_assets.core.ray_workers import NEUMF
from neumf_assets_tests.core.neumf.problems import changed, low_rank, train

# float32 sums in another order, amplified by Adam over the epochs
TOLERANCE = 2e-4


def two_workers() -> ParallelTraining:
    return ParallelTraining(2, LocalProcesses(NEUMF, threads=1))


@pytest.mark.parametrize(
    ("n_datasets", "changes"),
    [
        (1, {"pretrain": "both"}),
        (2, {"kind": "gmf", "objective": "nb", "gradient_clip": 0.01}),
        (2, {"kind": "gmf", "block_genes": 13, "block_cells": 3, "patience": 2}),
    ],
    ids=str,
)
def test_two_workers_train_the_model_of_one(n_datasets: int, changes: dict[str, Any]) -> None:
    counts, _, dataset = low_rank(n_datasets=n_datasets, shift=1.0)
    order = np.random.default_rng(0).permutation(dataset.size)  # both workers have cells of both datasets
    counts, dataset = counts[order], dataset[order]
    settings = changed(precision="float32", **changes)
    alone = train(counts, settings, dataset=dataset)
    together = train(counts, settings, dataset=dataset, training=two_workers())
    assert [row["epoch"] for row in together.history] == [row["epoch"] for row in alone.history]
    for figure in ("train_loss", "validation_loss"):
        losses = [[row[figure] for row in model.history] for model in (alone, together)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(together.predict(), alone.predict(), rtol=TOLERANCE)
    for name, table in alone.tables.items():
        difference = (together.tables[name] - table).norm() / table.norm()
        assert difference < TOLERANCE, name


def test_what_is_sent_does_not_depend_on_the_number_of_cells() -> None:
    settings = changed(kind="gmf", epochs=1, block_cells=16)
    sent = []
    for cells in (60, 240):
        training = two_workers()
        train(low_rank(cells=cells)[0], settings, training=training)
        assert training.traffic.steps == -(-cells // 16)
        sent.append(training.traffic.bytes_per_step)
    genes, size = 40, settings.gmf_size
    assert sent[0] == sent[1] == 4 * (genes * size + genes + size + 1)  # genes, biases, output weights, pairs


class Kills:
    """Kills workers by their rank, each at its epoch or as soon after as it is told of one."""

    def __init__(self, folder: Path, *at: tuple[str, int, int]) -> None:
        self.folder, self.waiting = folder, list(at)
        self.killed: list[int] = []
        self.epochs: list[tuple[str, int]] = []

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.epochs.append((stage, done))
        if self.waiting and self.waiting[0][0] == stage and self.waiting[0][1] <= done:
            self.killed.append(worker_processes(self.folder)[self.waiting.pop(0)[2]])
            os.kill(self.killed[-1], signal.SIGKILL)


def worker_processes(folder: Path) -> list[int]:
    """Return the process ids of this training's workers, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue  # it has ended meanwhile
            if str(folder) in command:
                found[command[command.index(str(folder)) + 1]] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the workers in /proc")
def test_killed_workers_are_replaced_and_the_result_is_the_same(tmp_path: Path) -> None:
    counts, _, _ = low_rank()
    settings = changed(checkpoint_seconds=0.0, pretrain_epochs=60, fusion_epochs=30)
    whole = train(counts, settings, training=two_workers(), checkpoint_dir=tmp_path / "whole")
    kills = Kills(tmp_path / "killed", ("train gmf", 2, 1), ("train neumf", 1, 0))
    mended = train(
        counts, settings, training=two_workers(), checkpoint_dir=tmp_path / "killed", progress=kills
    )
    assert len(kills.killed) == 2
    assert kills.epochs.count(("train gmf", 1)) == 1  # it did not begin anew
    assert all(torch.equal(table, whole.tables[name]) for name, table in mended.tables.items())
    assert not list((tmp_path / "killed").iterdir())


@pytest.mark.parametrize(("allowed", "each"), [("8", "4"), ("6,2", "3"), ("1", "1")])
def test_workers_share_the_threads_that_the_environment_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, each: str
) -> None:
    """A pod with a request for eight processors may lie on a node with a hundred."""
    given: dict[str, str] = {}
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **options: given.update(env))
    LocalProcesses(NEUMF)._start(tmp_path, 0, 2, tmp_path / "store", tmp_path / "log")
    assert given["OMP_NUM_THREADS"] == each


class KillsAt:
    """Runs two processes of this machine, and kills one so many seconds after it was made."""

    def __init__(self, seconds: float, rank: int) -> None:
        self.at, self.rank, self.done = time.monotonic() + seconds, rank, False

    def __call__(self, folder: Path, size: int, poll: Any) -> None:
        def watched() -> None:
            poll()
            if not self.done and time.monotonic() >= self.at:
                self.done = True
                for pid in worker_processes(folder)[self.rank :][:1]:
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < self.at + 300, "it does not end"

        LocalProcesses(NEUMF, threads=1)(folder, size, watched)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the workers in /proc")
def test_a_worker_killed_at_a_random_moment_leaves_the_result_as_it_is(tmp_path: Path) -> None:
    seed = int(os.environ.get("NEUMF_KILL_SEED", "0"))
    rng, counts = np.random.default_rng(seed), low_rank()[0]
    settings = changed(kind="gmf", checkpoint_seconds=0.0, epochs=100)
    begun = time.monotonic()
    whole = train(counts, settings, training=two_workers(), checkpoint_dir=tmp_path)
    needed = time.monotonic() - begun
    for number in range(2):
        seconds, rank = rng.uniform(0, needed), int(rng.integers(2))
        told = f"NEUMF_KILL_SEED={seed}, run {number}: worker {rank} after {seconds:.3f} of {needed:.3f} s"
        training = ParallelTraining(2, KillsAt(seconds, rank))
        try:
            model = train(counts, settings, training=training, checkpoint_dir=tmp_path)
        except Exception as error:
            raise AssertionError(told) from error
        assert all(torch.equal(table, whole.tables[name]) for name, table in model.tables.items()), told
        assert len(model.history) == 100, told
        assert not list(tmp_path.iterdir()), told
        assert not worker_processes(tmp_path), told


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the workers in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_killed_before_the_workers_have_met_is_replaced(rank: int) -> None:
    killed: list[int] = []

    def launch(folder: Path, size: int, poll: Any) -> None:
        until = time.monotonic() + 180

        def watched() -> None:
            poll()
            if not killed and len(pids := worker_processes(folder)) == size:
                killed.append(pids[rank])
                os.kill(pids[rank], signal.SIGKILL)
            assert time.monotonic() < until, "the other worker still waits for it"

        LocalProcesses(NEUMF, threads=1)(folder, size, watched)

    settings, training = changed(kind="gmf", epochs=2), ParallelTraining(2, launch)
    assert len(train(low_rank(cells=20)[0], settings, training=training).history) == 2
    assert killed


def test_workers_that_always_fail_end_in_one_error() -> None:
    counts, _, _ = low_rank(cells=20)

    def broken(folder: Path, size: int, poll: Any) -> None:
        (folder / "shard-1.safetensors").write_bytes(b"not a shard")
        LocalProcesses(NEUMF, restarts=0, threads=1)(folder, size, poll)

    with pytest.raises(NeumfError, match=r"failed in 1 attempts.*worker \d ended with 1 .*checkpoint"):
        train(counts, changed(kind="gmf"), training=ParallelTraining(2, broken))


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the workers in /proc")
def test_the_error_names_the_worker_that_was_killed_and_not_the_one_that_missed_it() -> None:
    def launch(folder: Path, size: int, poll: Any) -> None:
        def killing() -> None:
            if (folder / "progress").exists() and (pids := worker_processes(folder)):
                os.kill(pids[-1], signal.SIGKILL)
                time.sleep(1.0)  # the other one fails meanwhile

        LocalProcesses(NEUMF, restarts=0, threads=1)(folder, size, killing)

    settings = changed(kind="gmf", epochs=5000)
    with pytest.raises(NeumfError, match=r"worker 1 was killed \(SIGKILL"):
        train(low_rank(cells=40)[0], settings, training=ParallelTraining(2, launch))


@pytest.mark.parametrize(
    ("changes", "words"), [({"batch_norm": True}, "batch_norm"), ({}, "workers: 30 for 20 cells")]
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        train(low_rank(cells=20)[0], changed(**changes), training=ParallelTraining(30))


def test_a_training_that_was_broken_off_goes_on_where_its_workers_were(tmp_path: Path) -> None:
    counts, _, _ = low_rank()
    settings = changed(kind="gmf", checkpoint_seconds=0.0, epochs=100)
    pids: list[int] = []

    def stop(stage: str, done: int, total: int, **figures: float) -> None:
        if done == 3:
            pids.extend(worker_processes(tmp_path / "scratch"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(counts, settings, training=two_workers(), checkpoint_dir=tmp_path / "scratch", progress=stop)
    assert len(pids) == 2
    assert worker_processes(tmp_path / "scratch") == []
    epochs: list[int] = []

    def note(stage: str, done: int, total: int, **figures: float) -> None:
        epochs.append(done)

    (tmp_path / "scratch" / ".result-1.safetensors.99").touch()  # of a worker that was killed while it wrote
    again = train(
        counts, settings, training=two_workers(), checkpoint_dir=tmp_path / "scratch", progress=note
    )
    assert not list((tmp_path / "scratch").iterdir())
    assert epochs[0] > 1
    assert epochs[-1] == 100
    alone = train(counts, settings)
    np.testing.assert_allclose(again.predict(), alone.predict(), rtol=1e-2)

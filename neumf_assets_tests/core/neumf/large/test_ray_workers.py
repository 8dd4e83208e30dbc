"""Training on a real Ray cluster of two nodes, all on this machine and its loopback interface."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.neumf.large.parallel import ParallelTraining
from neumf_assets.core.neumf.large.who_trains import training_of
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.processes import LocalProcesses
from neumf_assets.core.ray_workers import NEUMF, RayWorkers
from neumf_assets_tests.conftest import need
from neumf_assets_tests.core.neumf.problems import changed, low_rank, train
from neumf_assets_tests.ray_cluster import NODE, two_nodes

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes with one processor each."""
    need(importlib.util.find_spec("ray"), "ray")
    with two_nodes() as cluster:
        yield cluster


def workers_by_node(cluster: Any, name: str = "TrainWorker") -> list[list[int]]:
    """Process ids of Ray Train's workers, or of what else has that name, on each node."""
    found = []
    for node in cluster.list_all_nodes():
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        found.append([one.pid for one in raylet.children(recursive=True) if _is_called(one, name)])
    return found


def _is_called(process: psutil.Process, name: str) -> bool:
    try:
        return any(name in part for part in process.cmdline())
    except psutil.Error:
        return False  # it has ended meanwhile


def train_locally(counts: Any, settings: NeuMFSettings) -> NeuMFModel:
    """Train with two processes of this machine."""
    return train(counts, settings, training=ParallelTraining(2, LocalProcesses(NEUMF, threads=1)))


def assert_same_tables(found: NeuMFModel, expected: NeuMFModel) -> None:
    """Every learnt number is the same, bit for bit."""
    for name, table in expected.tables.items():
        np.testing.assert_array_equal(found.tables[name].numpy(), table.numpy(), err_msg=name)


class Losses:
    """Takes something away from a training at each of these points, and notes its epochs and its workers."""

    def __init__(self, cluster: Any, at: dict[tuple[str, int], Callable[[Any], list[Any]]]) -> None:
        self.cluster, self.waiting = cluster, list(at.items())
        self.lost: list[list[Any]] = []
        self.epochs: list[tuple[str, int]] = []
        self.seen: list[list[list[int]]] = []

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.epochs.append((stage, done))
        self.seen.append(workers_by_node(self.cluster))
        if self.waiting and self.waiting[0][0][0] == stage and self.waiting[0][0][1] <= done:
            _, lose = self.waiting.pop(0)
            self.lost.append(lose(self.cluster))


def who_looks_after_the_workers(cluster: Any) -> list[int]:
    """Kill Ray Train's own process."""
    return _killed([pid for node in workers_by_node(cluster, "TrainController") for pid in node])


def a_node(cluster: Any) -> list[Any]:
    """Take the second node away with all that is on it, and add another."""
    lost = cluster.list_all_nodes()[1]
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(**NODE)
    return [lost]


def _killed(pids: list[int]) -> list[int]:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def test_workers_on_two_nodes_train_one_model_and_whatever_is_lost_is_replaced(
    cluster: Any, tmp_path: Path
) -> None:
    counts, _, _ = low_rank()
    settings = changed(checkpoint_seconds=0.0, pretrain_epochs=40, fusion_epochs=20, precision="float32")
    alone = train(counts, settings)
    local = train_locally(counts, settings)
    losses = Losses(
        cluster,
        {
            ("train gmf", 2): who_looks_after_the_workers,
            ("train neumf", 3): a_node,
        },
    )
    mended = train(
        counts,
        settings,
        training=ParallelTraining(2, RayWorkers(address=cluster.address)),
        checkpoint_dir=tmp_path / "scratch",
        progress=losses,
    )
    assert [len(lost) for lost in losses.lost] == [1, 1]
    assert [len(pids) for pids in losses.seen[0]] == [1, 1]
    for stage in ("train gmf", "train neumf"):
        assert losses.epochs.count((stage, 1)) == 1, "continued, not begun anew"
    assert_same_tables(mended, local)
    # Workers make step by step what one process makes in one call: sums in another order, whose rounding grows over
    # 60 epochs. A model of another seed is off by a fifth in the median.
    off = np.abs(mended.predict() / alone.predict() - 1)
    assert np.median(off) < 0.01 and off.max() < 0.3
    assert not list((tmp_path / "scratch").iterdir())


class FatalOnce(str):
    """The name of a module; the first worker that unpickles it is killed."""

    marker: Path

    def __reduce__(self) -> Any:
        """Pickle as a call of :func:`_named`."""
        return _named, (str(self), self.marker)


def _named(name: str, marker: Path) -> str:
    if _is_called(psutil.Process(), "TrainWorker"):
        with contextlib.suppress(FileExistsError):
            marker.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    module = FatalOnce(name)
    module.marker = marker
    return module


class KillsEarly(threading.Thread):
    """Kills the worker on the second node once, as soon as it is there: before the workers have met.

    Those that are there before a file is, it spares.
    """

    def __init__(self, cluster: Any, after: Path) -> None:
        super().__init__(daemon=True)
        self.cluster, self.after = cluster, after
        self.spared: set[int] = set()
        self.killed, self.over = 0, False

    def run(self) -> None:
        """Wait and kill."""
        while not self.killed and not self.over:
            begun = self.after.exists()
            for pid in set(workers_by_node(self.cluster)[1]) - self.spared:
                if begun:
                    os.kill(pid, signal.SIGKILL)
                    self.killed = pid
                else:
                    self.spared.add(pid)
            time.sleep(0.01)


def test_workers_killed_as_they_get_their_work_and_before_they_have_met_are_replaced(
    cluster: Any, tmp_path: Path
) -> None:
    counts, settings = low_rank()[0], changed(kind="gmf", epochs=3)
    local = train_locally(counts, settings)
    module = FatalOnce(NEUMF)
    module.marker = tmp_path / "killed"
    killing = KillsEarly(cluster, after=module.marker)
    killing.start()
    try:
        mended = train(
            counts,
            settings,
            training=ParallelTraining(2, RayWorkers(address=cluster.address, module=module)),
            checkpoint_dir=tmp_path / "scratch",
        )
    finally:
        killing.over = True
        killing.join()
    assert module.marker.exists()
    assert killing.killed
    assert_same_tables(mended, local)
    assert not list((tmp_path / "scratch").iterdir())


class CutOffOnce(RayWorkers):
    """Loses the cluster in the first attempt, after it was there."""

    def fit(self, folder: Path, size: int) -> None:
        """Note the attempt, and train nothing."""
        with (folder / "attempts").open("a") as attempts:
            attempts.write("x")
        if (folder / "attempts").read_text() == "x":
            raise ConnectionError("cut off")


def test_a_connection_that_is_lost_in_mid_training_is_made_again(cluster: Any, tmp_path: Path) -> None:
    CutOffOnce(address=cluster.address)(tmp_path, 2, lambda: None)
    assert (tmp_path / "attempts").read_text() == "xx"


def test_a_training_that_was_broken_off_leaves_no_workers_and_goes_on(cluster: Any, tmp_path: Path) -> None:
    counts, settings = low_rank()[0], changed(kind="gmf", epochs=150, checkpoint_seconds=0.0)
    training = ParallelTraining(2, RayWorkers(address=cluster.address))

    def stop(stage: str, done: int, total: int, **figures: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(counts, settings, training=training, checkpoint_dir=tmp_path, progress=stop)
    until = time.monotonic() + 60
    while any(workers_by_node(cluster)):
        assert time.monotonic() < until, "workers go on"
        time.sleep(0.1)
    epochs: list[int] = []

    def note(stage: str, done: int, total: int, **figures: float) -> None:
        epochs.append(done)

    train(counts, settings, training=training, checkpoint_dir=tmp_path, progress=note)
    assert epochs[0] > 3
    assert epochs[-1] == 150


def test_who_trains_follows_workers_and_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUMF_EXECUTOR", raising=False)
    assert training_of(changed(), "cpu") is None
    local = training_of(changed(workers=2), "cpu")
    assert isinstance(local, ParallelTraining)
    assert local.launch == LocalProcesses(NEUMF, threads=1)
    assert training_of(changed(workers=2), "cuda") is None
    monkeypatch.setenv("NEUMF_EXECUTOR", "ray")
    on_ray = training_of(changed(workers=2, threads=3), "cuda")
    assert isinstance(on_ray, ParallelTraining)
    assert on_ray.launch == RayWorkers(cpus=3, gpu=True)


def test_a_cluster_that_nothing_listens_for_is_refused_by_its_address(tmp_path: Path) -> None:
    need(importlib.util.find_spec("ray"), "ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(NeumfError, match=f"no Ray cluster at {address}.*set RAY_ADDRESS, or workers to 1"):
        RayWorkers(address=address)(tmp_path, 2, lambda: None)


class Enough(Exception):
    """Ends the waiting."""


def test_a_cluster_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need(importlib.util.find_spec("ray"), "ray")
    monkeypatch.setattr("neumf_assets.core.ray_workers.SILENT_SECONDS", 0.5)

    def until_said() -> None:
        if caplog.records:
            raise Enough

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Enough):
            RayWorkers(address=address)(tmp_path, 2, until_said)
    assert f"the Ray cluster at {address} does not answer yet" in caplog.text

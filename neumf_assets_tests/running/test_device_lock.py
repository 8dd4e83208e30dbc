"""One process at a time on a device; the operating system frees what a dead one held."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from neumf_assets.running import device_lock
from neumf_assets.running.device_lock import device_turn, locked
from neumf_assets.running.file_lock import FileLock, is_dead, sign_of_life

LOG = logging.getLogger(__name__)
HOLD = """
import sys, time, logging, signal
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from neumf_assets.running.device_lock import locked
with locked(Path(sys.argv[1]), logging.getLogger(), "an orphaned step"):
    print("held", flush=True)
    time.sleep(600)
"""
LIVE = """
import sys, time
from pathlib import Path
from neumf_assets.running.file_lock import sign_of_life
with sign_of_life(Path(sys.argv[1])):
    print("alive", flush=True)
    time.sleep(600)
"""


def _start(program: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_an_orphan_keeps_the_next_step_waiting_and_its_death_lets_it_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "locks" / "gpu.lock"
    orphan = _start(HOLD, path)
    try:
        assert not FileLock(path).acquire()
        waiting = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(6)
        assert FileLock(path).holder()["pid"] == orphan.pid
        orphan.send_signal(signal.SIGKILL)
        orphan.wait()
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "held\n"
        waiting.kill()
        waiting.wait()
        with caplog.at_level(logging.WARNING), locked(path, LOG, "the next step"):
            assert FileLock(path).held()
        assert not FileLock(path).held()
        assert not caplog.records
    finally:
        for process in (orphan, waiting):
            process.kill()
            process.wait()


def test_who_waits_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = tmp_path / "gpu.lock", []
    first = FileLock(path)
    assert first.acquire(what="liger/factors of run 12")

    class Log:
        def warning(self, text: str) -> None:
            said.append(text)
            first.release()

    monkeypatch.setattr(device_lock, "_POLL_SECONDS", 0.01)
    with locked(path, Log(), "next"):
        pass
    assert len(said) == 1
    assert "liger/factors of run 12" in said[0]
    assert "kill" in said[0]


def test_nothing_is_held_on_the_cpu(home: Path) -> None:
    with device_turn("cpu", LOG, "a step"):
        assert not (home / "locks").exists()


def test_the_devices_memory_is_given_back_after_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    path, held_when_freed = tmp_path / "gpu.lock", []
    monkeypatch.setattr(device_lock, "lock_path", lambda home, device: path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held_when_freed.append(FileLock(path).held()))
    with device_turn("cuda", LOG, "a step"):
        assert held_when_freed == []
    with pytest.raises(ValueError), device_turn("cuda", LOG, "a step that fails"):
        raise ValueError
    assert held_when_freed == [True, True]  # the next one finds it free of both, memory and lock
    assert not FileLock(path).held()


@pytest.mark.gpu
def test_nothing_of_a_step_stays_on_the_gpu(home: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    with device_turn("cuda", LOG, "a step"):
        kept = torch.ones(2**24, device="cuda")
        assert torch.cuda.memory_reserved() >= kept.nbytes
        del kept
    assert torch.cuda.memory_reserved() == 0


@pytest.mark.parametrize("wrong", [ValueError, KeyboardInterrupt])
def test_the_lock_is_free_after_a_failure(tmp_path: Path, wrong: type[BaseException]) -> None:
    path = tmp_path / "gpu.lock"
    with pytest.raises(wrong), locked(path, LOG, "a step"):
        raise wrong
    assert not FileLock(path).held()


def test_a_life_ends_with_its_process_only(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    assert not is_dead(path), "what never lived is not dead"
    process = _start(LIVE, path)
    try:
        assert not is_dead(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_dead(path)
    finally:
        process.kill()
        process.wait()
    with sign_of_life(path):
        assert not is_dead(path)
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_the_device_is_held_until_the_output_is_stored_and_then_freed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense matrix is computed as it is written; the lock must cover that, also when writing fails."""
    from neumf_assets.assets.stage import Product, Step, stage
    from neumf_assets.definitions import study as study_definitions
    from neumf_assets.running.resources import StoreResource
    from neumf_assets.study.settings import StudySettings

    path, held = tmp_path / "gpu.lock", []

    def turn(device: str, log: object, what: str) -> object:
        return locked(path, log, what)

    monkeypatch.setattr(study_definitions, "device_turn", turn)
    fails = {"now": False}

    @stage(group="model", per_dataset=False, uses_device=True)
    def thing(step: Step) -> Product:
        """A thing."""

        def save(folder: Path) -> None:
            held.append(FileLock(path).held())
            if fails["now"]:
                raise OSError("disk full")
            (folder / "a").write_text("a")

        return Product(save)

    asset = study_definitions.asset_of(StudySettings(name="s"), thing, [], [thing])
    store = StoreResource(root=str(tmp_path / "store"))
    resources = {**study_definitions.RESOURCES, "store": store}
    for fails["now"] in (False, True, False):
        gc.disable()  # the lock must not wait for Python to collect what failed
        try:
            result = dg.materialize([asset], resources=resources, raise_on_error=False)
            assert not FileLock(path).held()
        finally:
            gc.enable()
        assert result.success is not fails["now"]
    assert held == [True, True, True]


def test_polling_is_interruptible(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    holder = FileLock(path)
    assert holder.acquire()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stderr=subprocess.DEVNULL)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    holder.release()

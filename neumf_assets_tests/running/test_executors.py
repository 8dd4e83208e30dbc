"""The executors: chosen by a variable, with as many steps at a time as there are usable processors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.executor.multiprocess import MultiprocessExecutor
from sqlalchemy.exc import OperationalError

from neumf_assets.core.errors import BadSettings
from neumf_assets.home import Home
from neumf_assets.running import executors, orphans
from neumf_assets.running.executors import EXECUTORS, PRELOADED, executor
from neumf_assets.running.file_lock import FileLock
from neumf_assets.running.orphans import alive, dead_runs, fail_dead_runs, forget_ended_runs
from neumf_assets_tests.e2e.servers import wait_for

MULTIPROCESS = """
import os, sys
import dagster as dg
from neumf_assets.running.executors import executor

@dg.op(out=dg.Out(io_manager_key="io"))
def first(context):
    import json
    from neumf_assets.home import Home
    runs = Home.from_environment().run_locks
    lines = [",".join(sorted(p.name for p in runs.iterdir())), str(os.getpid())]
    lines.append(",".join(sorted(m for m in ("torch", "sklearn", "polars") if m in sys.modules)))
    open(os.environ["SAID"], "w").write(chr(10).join(lines))
    return 1

@dg.op
def second(number: int):
    import polars as pl  # its threads must work in a forked step
    import torch
    assert pl.DataFrame({"a": [1, 2, 3]}).lazy().group_by("a").agg(pl.len()).collect().height == 3
    assert float((torch.ones(200, 200) @ torch.ones(200, 200)).sum()) == 200.0**3

@dg.job(executor_def=executor(), resource_defs={"io": dg.fs_io_manager})
def both():
    second(first())

if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        with dg.execute_job(dg.reconstructable(both), instance=instance) as result:
            print(result.run_id if result.success else "failed", os.getpid())
"""


ORPHAN = """
import os, time
from pathlib import Path
import dagster as dg
from neumf_assets.definitions import study as study_definitions
from neumf_assets.assets.stage import Product, Step, stage
from neumf_assets.running.executors import executor
from neumf_assets.running.file_lock import FileLock
from neumf_assets.study.settings import StudySettings

@stage(group="model")
def endless(step: Step) -> Product:
    "Never ends."
    assert FileLock(Path(os.environ["LOCK"])).acquire()
    time.sleep(600)

def job():
    asset = study_definitions.asset_of(StudySettings(name="s"), endless, [], [endless])
    whole = dg.define_asset_job("whole", executor_def=executor())
    return dg.Definitions([asset], jobs=[whole], resources=study_definitions.RESOURCES).resolve_job_def("whole")

if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        dg.execute_job(dg.reconstructable(job), instance=instance)
"""


def test_in_process_is_the_default(home: Path) -> None:
    assert executor() is EXECUTORS["in_process"]


def test_the_variable_chooses(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMF_EXECUTOR", "multiprocess")
    assert executor().name == "multiprocess"


def test_a_wrong_name_lists_the_right_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMF_EXECUTOR", "threads")
    with pytest.raises(BadSettings, match="in_process, multiprocess"):
        executor()


def _inner(config: dict[str, object]) -> MultiprocessExecutor:
    """The executor that Dagster makes of a run's configuration."""
    chosen = EXECUTORS["multiprocess"]
    resolved = chosen.apply_config_mapping({"config": config})
    assert resolved.success, resolved.errors
    assert chosen.executor_creation_fn is not None
    context = dg.InitExecutorContext(
        job=InMemoryJob(_job()),
        executor_def=chosen,
        executor_config=resolved.value["config"],
        instance=dg.DagsterInstance.ephemeral(),
    )
    made = chosen.executor_creation_fn(context)
    assert isinstance(made, executors.AliveExecutor)
    assert isinstance(made._inner, MultiprocessExecutor)
    return made._inner


@pytest.mark.parametrize("cpus", [1, 3])
def test_steps_at_a_time_follow_the_usable_processors(monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    monkeypatch.setattr(executors, "usable_cpus", lambda: cpus)
    inner = _inner({})
    assert inner._max_concurrent == cpus
    assert inner._start_method == "forkserver"
    assert tuple(inner._explicit_forkserver_preload or ()) == PRELOADED


def test_a_run_may_still_choose_for_itself() -> None:
    assert _inner({"max_concurrent": 7})._max_concurrent == 7


def test_forked_steps_find_torch_loaded_and_the_run_is_known_to_live(home: Path, tmp_path: Path) -> None:
    folders = Home.from_environment()
    folders.prepare()
    (tmp_path / "program.py").write_text(MULTIPROCESS)
    said = tmp_path / "said"
    done = subprocess.run(
        [sys.executable, "program.py"],
        env={
            **os.environ,
            "NEUMF_EXECUTOR": "multiprocess",
            "DAGSTER_HOME": str(folders.dagster),
            "SAID": str(said),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run_id, parent = done.stdout.split()[-2:]
    living, process, loaded = said.read_text().splitlines()
    assert living == run_id
    assert process != parent
    assert loaded == "sklearn,torch"
    assert list(folders.run_locks.iterdir()) == []


def test_no_step_outlives_the_process_that_executes_its_run(home: Path, tmp_path: Path) -> None:
    """It would keep the GPU, and its lock, while the run is started once more."""
    folders = Home.from_environment()
    folders.prepare()
    (tmp_path / "program.py").write_text(ORPHAN)
    lock = FileLock(tmp_path / "gpu.lock")
    own = {"NEUMF_EXECUTOR": "multiprocess", "DAGSTER_HOME": str(folders.dagster), "LOCK": str(lock.path)}
    run = subprocess.Popen([sys.executable, "program.py"], env={**os.environ, **own}, cwd=tmp_path)
    try:
        wait_for(lambda: lock.held() and "pid" in lock.holder(), "the step", 120)
        step = psutil.Process(int(lock.holder()["pid"]))
        assert step.pid != run.pid
        run.kill()
        run.wait()
        wait_for(lambda: not lock.held(), "the end of the step", 30)
        wait_for(
            lambda: not step.is_running() or step.status() == psutil.STATUS_ZOMBIE, "its process' end", 30
        )
    finally:
        run.kill()
        run.wait()
        if lock.held():
            os.kill(int(lock.holder()["pid"]), signal.SIGKILL)


ELSEWHERE = """
import sys, time
import dagster as dg
from neumf_assets.running import orphans
from neumf_assets.home import Home
orphans.LOOK_SECONDS = 0.1
home = Home.from_environment()
with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
    orphans.end_with_run(home, instance, sys.argv[1])
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("cancelling", [False, True])
def test_a_step_on_another_machine_ends_with_its_run(home: Path, cancelling: bool) -> None:
    folders = Home.from_environment()
    folders.prepare()
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        run = _started(instance)
        step = subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE, run.run_id],
            env={**os.environ, "DAGSTER_RUN_STEP_KEY": "step"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert step.stdout is not None
            assert step.stdout.readline() == "at work\n"
            with pytest.raises(subprocess.TimeoutExpired):
                step.wait(0.5)
            if cancelling:
                instance.report_run_canceling(run)
            else:
                instance.report_run_failed(run, "its pod was lost")
            assert step.wait(30) == 137
        finally:
            step.kill()
            step.wait()


class Answers:
    """Stands for an instance whose database gives these answers one after the other."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)

    def get_run_by_id(self, run_id: str) -> None:
        """Give the next answer."""
        if (answer := self.answers.pop(0)) is not None:
            raise answer


def test_a_step_waits_while_the_database_is_away_but_not_after_another_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orphans, "LOOK_SECONDS", 0.0)
    away = OperationalError("SELECT", {}, Exception("the server closed the connection"))
    wrapped = Exception("too many retries for DB connection")  # as dagster-postgres does it
    wrapped.__cause__ = away
    answers = Answers(away, wrapped, None)
    orphans._wait_for_end(answers, "run")  # type: ignore[arg-type]
    assert answers.answers == []
    with pytest.raises(ZeroDivisionError):
        orphans._wait_for_end(Answers(ZeroDivisionError()), "run")  # type: ignore[arg-type]


def test_nothing_preloaded_breaks_in_a_fork() -> None:
    """Polars starts threads that a fork loses, so that its first use in a step would never end."""
    program = (
        "import importlib, sys\n"
        f"for name in {PRELOADED!r}: importlib.import_module(name)\n"
        "print('polars' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


LIVE = """
import sys, time
from neumf_assets.home import Home
from neumf_assets.running.orphans import alive
with alive(Home.from_environment(), sys.argv[1]):
    print("alive", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("cancelling", [False, True])
def test_a_dead_run_is_failed_and_a_living_one_left_alone(home: Path, cancelling: bool) -> None:
    folders = Home.from_environment()
    folders.prepare()
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        run = _started(instance)
        process = subprocess.Popen(
            [sys.executable, "-c", LIVE, run.run_id], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            assert fail_dead_runs(instance, folders) == []
            if cancelling:
                instance.report_run_canceling(run)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert [found.run_id for found in dead_runs(instance, folders)] == [run.run_id]
            assert fail_dead_runs(instance, folders) == [run.run_id]
            assert fail_dead_runs(instance, folders) == []
        finally:
            process.kill()
            process.wait()
        ended = instance.get_run_by_id(run.run_id)
        assert ended is not None
        assert ended.status.value == ("CANCELED" if cancelling else "FAILURE")


def test_what_a_dead_process_left_is_removed_once_its_run_is_known_to_have_ended(home: Path) -> None:
    folders = Home.from_environment()
    folders.prepare()
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        run, living = _started(instance), _started(instance)
        process = subprocess.Popen(
            [sys.executable, "-c", LIVE, run.run_id], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
        process.wait()
        lock = folders.run_locks / run.run_id
        forget_ended_runs(instance, folders)
        assert lock.exists(), "the only sign that the run has died"
        instance.report_run_failed(run, "the code server noticed that its process ended")
        with alive(folders, living.run_id):
            instance.report_run_failed(living, "marked by hand")
            forget_ended_runs(instance, folders)
            assert (folders.run_locks / living.run_id).exists(), "held by a living process"
        assert not lock.exists()


def test_a_dead_run_gives_back_its_place_in_a_pool(home: Path) -> None:
    folders = Home.from_environment()
    folders.prepare()
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        run, living = _started(instance), _started(instance)
        instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
        claim = instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "step")
        assert claim.is_claimed
        with alive(folders, living.run_id):
            fail_dead_runs(instance, folders)
            waiting = instance.event_log_storage.claim_concurrency_slot("gpu", living.run_id, "step")
            assert not waiting.is_claimed, "a run without a lock may be living elsewhere"
            process = subprocess.Popen(
                [sys.executable, "-c", LIVE, run.run_id], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            assert process.stdout.readline()
            process.kill()
            process.wait()
            assert fail_dead_runs(instance, folders) == [run.run_id]
            storage = instance.event_log_storage
            assert storage.claim_concurrency_slot("gpu", living.run_id, "step").is_claimed


def test_a_run_of_somebody_else_is_left_alone(home: Path) -> None:
    folders = Home.from_environment()
    folders.prepare()
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        run = _started(instance)
        with alive(folders, "another"):
            assert fail_dead_runs(instance, folders) == []
        found = instance.get_run_by_id(run.run_id)
        assert found is not None and found.status == dg.DagsterRunStatus.STARTED


def test_the_launcher_reports_the_death_of_a_run(home: Path) -> None:
    from dagster._core.launcher import WorkerStatus

    folders = Home.from_environment()
    folders.prepare()
    with dg.DagsterInstance.from_config(str(folders.dagster)) as instance:
        launcher, run = instance.run_launcher, _started(instance)
        assert launcher.supports_check_run_worker_health
        assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
        process = subprocess.Popen(
            [sys.executable, "-c", LIVE, run.run_id], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
        process.kill()
        process.wait()
        assert launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None:
        """Nothing."""

    @dg.job
    def job() -> None:
        nothing()

    return job


def _started(instance: dg.DagsterInstance) -> dg.DagsterRun:
    run = instance.create_run_for_job(_job())
    event = dg.DagsterEvent(event_type_value="PIPELINE_START", job_name="job")
    instance.report_dagster_event(event, run.run_id)
    found = instance.get_run_by_id(run.run_id)
    assert found is not None and found.status == dg.DagsterRunStatus.STARTED
    return found

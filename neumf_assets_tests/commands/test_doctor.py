"""The doctor names what is wrong and the mend, for a set-up that is broken on purpose."""

from __future__ import annotations

import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import dagster as dg
import pytest

from neumf_assets.cli import main
from neumf_assets.commands import doctor
from neumf_assets.commands.doctor import Finding
from neumf_assets.home import Home


def _only(findings: object, verdict: str) -> list[Finding]:
    return [finding for finding in findings if finding.verdict == verdict]  # type: ignore[attr-defined]


@pytest.fixture
def instance(home: Path) -> Home:
    """A home whose Dagster instance has been used."""
    folders = Home.from_environment()
    folders.prepare()
    with dg.DagsterInstance.from_config(str(folders.dagster)) as found:
        found.add_dynamic_partitions("x", ["y"])
    return folders


def test_a_healthy_set_up_has_no_problem(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--port", "0"]) == 0
    shown = capsys.readouterr().out
    assert "0 problems" in shown
    for subject in (
        "versions",
        "settings",
        "device",
        "kernel",
        "home",
        "disk",
        "instance",
        "storage",
        "port",
    ):
        assert subject in shown
    assert not (home / "dagster").exists(), "looking made an instance"


def test_the_exit_status_tells_of_problems(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEUMF_DEVICE", "tpu")
    assert main(["doctor", "--port", "0"]) == 1
    shown = capsys.readouterr().out
    assert "auto, cpu, cuda" in shown
    assert "mend:" in shown


@pytest.mark.parametrize(
    ("variable", "value"), [("NEUMF_DEVICE", "gpu"), ("NEUMF_EXECUTOR", "threads"), ("NEUMF_MEMORY", "much")]
)
def test_a_wrong_variable_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    problems = _only(doctor.check_settings(), "problem")
    assert len(problems) == 1
    assert variable in problems[0].text and variable in problems[0].mend


def test_a_broken_study_file_is_named(instance: Home) -> None:
    (instance.studies / "bad.yaml").write_text("name: bad\nmodle: {}\n")
    (problem,) = _only(doctor.check_settings(), "problem")
    assert "modle" in problem.text and "bad.yaml" in problem.text


def test_cuda_that_is_asked_for_and_absent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("NEUMF_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (problem,) = _only(doctor.check_device(), "problem")
    assert "NEUMF_TORCH" in problem.mend


def test_a_gpu_that_lies_idle_is_told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_GPU_SIGNS", (tmp_path,))
    (warning,) = _only(doctor.check_device(), "warning")
    assert "does not use it" in warning.text


def test_no_compiler_is_a_warning_with_the_mend(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neumf_assets.core.neumf.fused import tower

    monkeypatch.setattr(tower, "available", lambda precision="float32": (False, "no C++ compiler was found"))
    (warning,) = _only(doctor.check_kernel(), "warning")
    assert "g++" in warning.mend


def test_a_container_with_little_memory_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_limit", lambda: 2**30)
    [finding] = doctor.check_processors()
    assert finding.verdict == "warning"
    assert "1.0 GiB" in finding.text


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEUMF_HOME", "/proc/neumf" if os.getuid() == 0 else "/neumf")
    (problem,) = _only(doctor.check_home(), "problem")
    assert "NEUMF_HOME" in problem.mend


@pytest.mark.parametrize(("free", "verdict"), [(2**28, "problem"), (2**32, "warning"), (2**40, "ok")])
def test_disk_space(home: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**41, 0, free))
    assert {finding.verdict for finding in doctor.check_disk()} == {verdict}


def test_an_unused_instance_wants_its_daemon(instance: Home) -> None:
    found = list(doctor.check_instance())
    assert any("schema up to date" in finding.text for finding in found)
    (warning,) = _only(found, "warning")
    assert warning.subject == "daemon"
    assert "neumf-assets ui" in warning.mend


def test_an_old_schema_is_a_problem(instance: Home) -> None:
    import sqlite3

    file = instance.dagster / "history" / "runs.db"
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = '9fe9e746268c'")
    (problem,) = _only(doctor.check_instance(), "problem")
    assert "dagster instance migrate" in problem.mend


def test_a_database_that_is_down_is_a_problem(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Home.from_environment().dagster
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[2] / "deploy" / "dagster.yaml", folder)
    settings = {"HOST": "127.0.0.1", "PORT": "1", "USER": "u", "PASSWORD": "p", "DATABASE": "d"}
    for name, value in settings.items():
        monkeypatch.setenv(f"NEUMF_PG_{name}", value)
    (problem,) = _only(doctor.check_instance(), "problem")
    assert "refused" in problem.text
    assert "database is up" in problem.mend


def test_a_variable_that_is_missing_is_a_problem(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUMF_PG_HOST", raising=False)
    folder = Home.from_environment().dagster
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[2] / "deploy" / "dagster.yaml", folder)
    (problem,) = _only(doctor.check_instance(), "problem")
    assert "variables" in problem.mend


def test_the_launcher_that_never_notices_a_death_is_told(instance: Home) -> None:
    file = instance.dagster / "dagster.yaml"
    lines = file.read_text().splitlines()
    start = lines.index("run_launcher:")
    file.write_text("\n".join(lines[:start] + lines[start + 3 :]))
    warnings = _only(doctor.check_instance(), "warning")
    assert any("LocalRunLauncher" in finding.mend for finding in warnings)


def test_storage_without_its_package_or_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMF_STORAGE", "nosuchprotocol://bucket/x")
    (problem,) = _only(doctor.check_storage(), "problem")
    assert "nosuchprotocol" in problem.text


def test_storage_that_never_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(doctor, "_STORAGE_SECONDS", 0.1)
    monkeypatch.setattr(doctor, "_probe_storage", lambda home, result: time.sleep(1))
    (problem,) = _only(doctor.check_storage(), "problem")
    assert "does not answer" in problem.text


def test_storage_that_works_is_left_as_it_was(home: Path) -> None:
    (fine,) = doctor.check_storage()
    assert fine.verdict == "ok"
    assert not list((home / "storage").rglob("*probe*"))


def test_a_port_that_is_taken(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (finding,) = doctor.check_port(port)
    assert finding.verdict == "warning"
    assert f"PORT={port + 1}" in finding.mend


def test_versions_outside_their_range_and_missing_ones() -> None:
    declared = ["dagster<1", "no-such-package>=2", "numpy>=1", "not-installed>3; extra == 'ray'"]
    found = dict(doctor._out_of_range(declared))
    assert len(found) == 2
    assert any("no-such-package is not installed" in text for text in found)
    assert any("supported is <1" in text for text in found)


def test_a_check_that_breaks_down_is_a_problem_and_the_others_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError("so what")

    monkeypatch.setattr(doctor, "check_device", broken)
    found = list(doctor.diagnose(0))
    assert [f.text for f in found if f.subject == "device"] == ["ZeroDivisionError: so what"]
    assert found[-1].subject == "port"

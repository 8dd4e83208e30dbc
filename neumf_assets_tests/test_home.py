"""A home directory's own settings."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from neumf_assets.home import Home
from neumf_assets.running.run_launcher import LocalRunLauncher


def test_a_home_of_version_0_1_finds_its_launcher_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Home.from_environment()
    made.prepare()
    settings = made.dagster / "dagster.yaml"
    now = settings.read_text()
    old = now.replace("neumf_assets.running.run_launcher", "neumf_assets.run_launcher") + "# mine\n"
    assert old.count("neumf_assets.run_launcher") == 1
    settings.write_text(old)
    made.prepare()
    assert settings.read_text() == now + "# mine\n"
    monkeypatch.setenv("DAGSTER_HOME", str(made.dagster))
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.run_launcher, LocalRunLauncher)

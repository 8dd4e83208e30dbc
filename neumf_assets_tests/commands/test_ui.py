"""``neumf-assets ui`` before it serves: once for each home, on a port that is free."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from neumf_assets.cli import main
from neumf_assets.commands import ui
from neumf_assets.home import Home
from neumf_assets.running.file_lock import FileLock


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ports that would have been served; nothing is."""
    ports: list[int] = []
    monkeypatch.setattr(ui, "_dagster", lambda _, port: ports.append(port))
    monkeypatch.setattr(ui, "_say_when_ready", lambda _: None)
    for name in ("DAGSTER_HOME", "NEUMF_HOME", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return ports


def test_a_home_is_served_once(served: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    lock = FileLock(Home.from_environment().locks / "ui.lock")
    assert lock.acquire(port=3123)
    try:
        assert main(["ui", "--port", "3124"]) == 0
    finally:
        lock.release()
    assert served == []
    assert f"Already served at http://127.0.0.1:3123 by process {os.getpid()}." in capsys.readouterr().out


def test_a_port_that_is_taken_is_said_in_one_line(
    served: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [
        f"neumf-assets: Port {port} of 127.0.0.1 is taken by another program. Choose another with --port."
    ]
    assert served == []
    assert main(["ui", "--port", str(port)]) == 0, "the lock was given back, and the port is free now"
    assert served == [port]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("neumf-assets 0.")

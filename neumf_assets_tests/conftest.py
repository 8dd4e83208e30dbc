"""Fixtures that many tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

REAL_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

# A shell that starts the tests in the background has interrupts ignored; servers would inherit that, and not end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, and begin with the long ones, so that none is left for the end.

    Files that must not run side by side have a group in common.
    """
    long = {item.path for item in items if item.get_closest_marker("e2e") or item.get_closest_marker("slow")}
    grouped = {item.path for item in items if item.get_closest_marker("xdist_group")}
    items.sort(key=lambda item: (item.path not in grouped, item.path not in long))
    for item in items:
        if item.path not in grouped:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty NEUMF_HOME of this test's own."""
    for name in ("NEUMF_STORAGE", "NEUMF_DEVICE", "NEUMF_EXECUTOR", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEUMF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real count data, which is not part of the repository."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real count data is not there ({REAL_DATA})")
    return REAL_DATA


def need(found: object, what: str) -> None:
    """Skip for want of a system package; in continuous integration, fail instead."""
    if found:
        return
    if os.environ.get("NEUMF_REQUIRE_ALL_TESTS"):
        pytest.fail(f"{what} is missing, and nothing may be skipped here")
    pytest.skip(f"{what} is not installed")

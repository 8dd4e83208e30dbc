"""Fixtures that many tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

REAL_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

# A shell that starts the tests in the background has interrupts ignored; servers would inherit that, and not end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests are long, so that none of them is left for one worker at the end."""
    long = {item.path for item in items if item.get_closest_marker("e2e") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not _one_at_a_time(item.nodeid), item.path not in long))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file's tests to one worker, and files that must not run side by side to the same one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _one_at_a_time(nodeid) or super()._split_scope(nodeid)

    return ByFile(config, log)


def _one_at_a_time(nodeid: str) -> str:
    """What the test's file has in common with others that would be in each other's way: a cluster's ports."""
    return "ray" if Path(nodeid.partition("::")[0]).name.startswith("test_ray_") else ""


def use_home(patch: pytest.MonkeyPatch, home: Path) -> Path:
    """Let NEUMF_HOME be that folder, and nothing else be set."""
    for name in ("NEUMF_STORAGE", "NEUMF_DEVICE", "NEUMF_EXECUTOR", "DAGSTER_HOME"):
        patch.delenv(name, raising=False)
    patch.setenv("NEUMF_HOME", str(home))
    return home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty NEUMF_HOME of this test's own."""
    return use_home(monkeypatch, tmp_path / "home")


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

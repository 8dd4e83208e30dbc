"""Steps cancelled by the web interface's GraphQL, in the midst of its work."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neumf_assets.assets.catalogue import stages
from neumf_assets.home import Home
from neumf_assets.study.settings import StudySettings
from neumf_assets_tests.e2e.asking import add_datasets, cancel, ended, launch, quiet
from neumf_assets_tests.e2e.servers import Server, free_port, wait_for
from neumf_assets_tests.e2e.test_daemon import ROOT, WORKSPACE

pytestmark = pytest.mark.e2e

# A simulated study's sensors are off, so every run here is asked for by a test.
STUDY = """
name: tiny
simulate: {datasets: [[ctrl, 60, control], [stim, 60, stimulated]], genes: 400, seed: 3}
"""


# Of a dataset and of a study, with training's checkpoints and without. All kinds of assets get the signal that a
# cancelled run comes to in the campaign of kills, where they compute in earnest.
CANCELLED = ("raw_counts", "neumf_model", "ineumf/model", "report")


@dataclass(frozen=True)
class Ui:
    """The web interface, and the home that it works on."""

    url: str
    home: Home

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        data: dict[str, Any] = found["data"]
        return data

    read = ask

    def loaded(self) -> bool:
        query = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError {"
        query += " __typename ... on PythonError { message } } } } } }"
        try:
            entries = self.ask(query)["workspaceOrError"].get("locationEntries", [])
        except OSError:
            return False
        found = [entry["locationOrLoadError"] for entry in entries if entry["locationOrLoadError"]]
        assert all(one["__typename"] == "RepositoryLocation" for one in found), found
        return bool(found)

    def versions(self) -> dict[str, str]:
        """The current version of every artifact; every file of it is there, whole."""
        found = {}
        for path in sorted(Path(self.home.storage).rglob("manifest.json")):
            content = json.loads(path.read_text())
            for name, size in content["files"].items():
                assert (path.parent / content["version"] / name).stat().st_size == size
            found[str(path.parent.relative_to(self.home.storage))] = content["version"]
        return found


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """Webserver and daemon as ``neumf-assets ui`` starts them, with a complete study whose science is replaced."""
    root = tmp_path_factory.mktemp("cancel") / "home"
    home = Home(root=root, storage=str(root / "storage"))
    home.studies.mkdir(parents=True)
    (home.studies / "tiny.yaml").write_text(STUDY)
    (root / "dagster").mkdir()
    (root / "dagster" / "workspace.yaml").write_text(WORKSPACE)
    others = {k: v for k, v in os.environ.items() if not k.startswith(("NEUMF_", "DAGSTER_"))}
    port = free_port()
    site = Ui(f"http://127.0.0.1:{port}", home)
    server = Server(
        [sys.executable, "-m", "neumf_assets.cli", "ui", "--port", str(port)],
        root / "ui.log",
        env={**others, "NEUMF_HOME": str(root), "NEUMF_DEVICE": "cpu", "PYTHONPATH": str(ROOT)},
        cwd=root,
    )
    try:
        server.start()
        wait_for(site.loaded, "the web interface")
        add_datasets(site, "ctrl", "stim")
        for dataset in ("ctrl", "stim"):
            assert ended(site, launch(site, "train", dataset)) == "SUCCESS"
        assert ended(site, launch(site, "integrate")) == "SUCCESS"
        yield site
    finally:
        server.stop()


def _cancel_in_the_midst(ui: Ui, asset: str) -> None:
    job, partition = ("integrate", None) if "/" in asset or asset in _OF_STUDY else ("train", "ctrl")
    before = ui.versions()
    hold, held = ui.home.root / "hold", ui.home.root / "held"
    hold.write_text(asset)
    try:
        run = launch(ui, job, partition, asset)
        wait_for(held.exists, f"{asset} at work", every=0.1)
        cancel(ui, run)
        assert ended(ui, run) == "CANCELED", asset
    finally:
        hold.unlink()
        held.unlink(missing_ok=True)
    assert ui.versions() == before
    assert quiet(ui)
    wait_for(lambda: not list(ui.home.run_locks.iterdir()), "the end of the run's process", 60)
    assert not list(Path(ui.home.storage).rglob(".tmp-*"))


_OF_STUDY = {item.path for item in stages(StudySettings(name="tiny")) if not item.per_dataset}


def _run_again(ui: Ui, before: dict[str, str]) -> None:
    """Everything anew, and nothing is left as it was."""
    for dataset in ("ctrl", "stim"):
        assert ended(ui, launch(ui, "train", dataset)) == "SUCCESS"
    assert ended(ui, launch(ui, "integrate")) == "SUCCESS"
    now = ui.versions()
    assert set(now) == set(before)
    assert not [key for key in now if now[key] == before[key]]


@pytest.mark.slow
def test_a_cancelled_step_does_no_harm(ui: Ui) -> None:
    before = ui.versions()
    for asset in CANCELLED:
        _cancel_in_the_midst(ui, asset)
    _run_again(ui, before)

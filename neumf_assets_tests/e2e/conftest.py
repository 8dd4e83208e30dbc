"""One small study, one Dagster instance with webserver and daemon, one browser; shared by the tests here."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    expect,
    sync_playwright,
)

from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets_tests.commands.test_run import QUICK
from neumf_assets_tests.conftest import need

STUDY = "tiny"
LOCATION = "neumf_assets"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_BAD_FILE = b",c1,c2\ng1,1,x\ng2,0,3\n"
_PATIENCE_MS = 60_000


def wait_until(true: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """The first true value of a function that is asked again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds:.0f} s")


@dataclass(frozen=True)
class Server:
    """A running Dagster instance with one finished study."""

    url: str
    home: Path

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        data: dict[str, Any] = found["data"]
        return data


def write_study(inbox: Path, seed: int) -> None:
    """Files of three datasets."""
    datasets = [["ctrl", 150, "control"], ["stim", 120, "stimulated"], ["late", 100, "control"]]
    write_inbox(SimulatorSettings.model_validate({"datasets": datasets, "genes": 400, "seed": seed}), inbox)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a finished study of three datasets, one of whose files has been replaced by a bad one."""
    need(shutil.which("chromium"), "chromium")
    root = tmp_path_factory.mktemp("ui")
    inbox, home = root / "inbox", root / "home"
    write_study(inbox, seed=3)
    studies = home / "studies"
    studies.mkdir(parents=True)
    own = {"name": STUDY, "inbox": str(inbox), "schedule": {"cron": "0 3 * * *"}}
    lines = [f"{key}: {json.dumps(value)}" for key, value in own.items()]
    (studies / f"{STUDY}.yaml").write_text("\n".join(lines) + QUICK.replace(", tsne: true", ""))
    done = subprocess.run(
        [sys.executable, "-m", "neumf_assets.cli", "run", "--study", STUDY],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (inbox / "late.csv.gz").write_bytes(gzip.compress(_BAD_FILE))
    return home


@pytest.fixture(scope="module")
def server(study: Path) -> Iterator[Server]:
    """Webserver and daemon as ``neumf-assets ui`` starts them, on a free port; sensors and schedules off."""
    port = _free_port()
    running = Server(f"http://127.0.0.1:{port}", study)
    with (study / "ui.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "neumf_assets.cli", "ui", "--port", str(port)],
            env=environment(study),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(lambda: process.poll() is not None or _answers(running), "the webserver", 180)
            assert process.poll() is None, (study / "ui.log").read_text()
            _switch_off(running)
            yield running
        finally:
            _stop(process)


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[BrowserContext]:
    """A browser window of its own profile; closed with the module, for it keeps an event loop running."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        window = chromium.new_context(viewport={"width": 1600, "height": 1000}, base_url=server.url)
        window.set_default_timeout(_PATIENCE_MS)
        expect.set_options(timeout=_PATIENCE_MS)
        window.set_default_navigation_timeout(_PATIENCE_MS)
        yield window
        window.close()
        chromium.close()


@dataclass
class Complaints:
    """What went wrong in a page, and what it asked of other machines."""

    server: str
    found: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Listen to a page from now on."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.found.append(f"error in a script: {error}"))
        page.on("response", self._response)
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.found.append(f"console: {message.text}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.found.append(f"HTTP {response.status}: {response.url}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.server, self.server.replace("http", "ws"), "data:", "blob:")):
            self.found.append(f"request to elsewhere: {request.url}")


@pytest.fixture
def page(browser: BrowserContext, server: Server, request: pytest.FixtureRequest) -> Iterator[Page]:
    """An empty tab; the test fails if anything in it complained.

    Its last state is kept as a picture in the folder ``NEUMF_UI_PICTURES``, where that is set.
    """
    tab, complaints = browser.new_page(), Complaints(server.url)
    complaints.watch(tab)
    yield tab
    if pictures := os.environ.get("NEUMF_UI_PICTURES"):
        Path(pictures).mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=Path(pictures) / f"{request.node.name}.png")
    tab.close()
    assert not complaints.found


def environment(home: Path) -> Mapping[str, str]:
    """Nothing of the tests' own settings, but this home."""
    others = {
        name: value for name, value in os.environ.items() if not name.startswith(("NEUMF_", "DAGSTER_"))
    }
    return {**others, "NEUMF_HOME": str(home), "OMP_NUM_THREADS": "2"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(server: Server) -> bool:
    try:
        found = server.ask("{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }")
    except OSError:
        return False
    entries = found["workspaceOrError"].get("locationEntries", [])
    return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)


def _switch_off(server: Server) -> None:
    """Sensors and schedules start runs of their own; here every run is asked for by a test."""
    found = server.ask(
        """query Running($repository: RepositorySelector!) {
             repositoryOrError(repositorySelector: $repository) { ... on Repository {
               sensors { name sensorState { id status } }
               schedules { name scheduleState { id status } } } } }""",
        repository=REPOSITORY,
    )["repositoryOrError"]
    for sensor in found["sensors"]:
        server.ask(
            "mutation Off($id: String!) { stopSensor(id: $id) { __typename } }",
            id=sensor["sensorState"]["id"],
        )
    for schedule in found["schedules"]:
        state = schedule["scheduleState"]["id"]
        server.ask("mutation Off($id: String!) { stopRunningSchedule(id: $id) { __typename } }", id=state)


REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Politely first; then the whole group, which holds the webserver, the daemon, the code server and runs."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(30)

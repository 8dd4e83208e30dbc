"""Pages of other sites, open in a real browser of the same machine, reach nothing of the web interface."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, sync_playwright

from neumf_assets_tests.conftest import need
from neumf_assets_tests.e2e.conftest import CHROMIUM_FLAGS
from neumf_assets_tests.e2e.servers import BIN, Server, free_port, listening, wait_for

pytestmark = pytest.mark.e2e

# What changes something without any study: a limit of a pool.
CHANGE = 'mutation { setConcurrencyLimit(concurrencyKey: "attacked", limit: 7) }'
LIMITS = "{ instance { concurrencyLimits { concurrencyKey slotCount } } }"
ATTACK = """async ([url, change]) => {
  const tried = {};
  const send = async (name, type, mode) => {
    try {
      const answer = await fetch(url + '/graphql', {method: 'POST', mode, headers: {'Content-Type': type},
                                                    body: JSON.stringify({query: change})});
      tried[name] = answer.type === 'opaque' ? 'sent' : (await answer.text()).slice(0, 80);
    } catch (error) { tried[name] = 'blocked'; }
  };
  await send('simple', 'text/plain', 'no-cors');
  await send('json', 'application/json', 'cors');
  try {
    const query = '/graphql?query=' + encodeURIComponent(change);
    await fetch(url + query, {mode: 'no-cors'});
  } catch (error) { }
  tried.socket = await new Promise(done => {
    const wire = new WebSocket(url.replace('http', 'ws') + '/graphql', 'graphql-ws');
    wire.onopen = () => done('open');
    wire.onerror = () => done('refused');
    wire.onclose = () => done('refused');
  });
  tried.frame = await new Promise(done => {
    const frame = document.createElement('iframe');
    frame.onload = () => { try { done(String(frame.contentDocument !== null)); } catch (e) { done('foreign'); } };
    frame.src = url + '/';
    document.body.append(frame);
  });
  const form = document.createElement('form');
  form.method = 'POST'; form.action = url + '/graphql'; form.enctype = 'text/plain';
  const field = document.createElement('input');
  field.name = '{"query": ' + JSON.stringify(change) + ', "x": "'; field.value = '"}';
  form.append(field); document.body.append(form);
  form.target = 'elsewhere'; form.submit();
  await new Promise(done => setTimeout(done, 1500));
  return tried;
}"""


@dataclass(frozen=True)
class Sites:
    """Ports of the web interface and of another site."""

    own: int
    other: int


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>other</title><body></body>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """The web interface as ``neumf-assets ui`` starts it, without any study, and a page of somebody else."""
    folder, port = tmp_path_factory.mktemp("webserver"), free_port()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    command = [str(BIN / "python"), "-m", "neumf_assets.commands.webserver", "--empty-workspace"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    server = Server(command, folder / "log", env={**os.environ, "DAGSTER_HOME": str(folder)}, cwd=folder)
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        server.start()
        wait_for(lambda: listening(port), "the web interface")
        yield Sites(port, other.server_address[1])
    finally:
        server.stop(patience=10)
        other.shutdown()
        other.server_close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser to which names of the attacker's are this machine."""
    found = shutil.which("chromium")
    need(found, "chromium")
    names = "--host-resolver-rules=MAP rebound.test 127.0.0.1, MAP evil.test 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*CHROMIUM_FLAGS, names])
        yield browser
        browser.close()


def _limits(port: int) -> str:
    body = json.dumps({"query": LIMITS}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("name", ["evil.test", "localhost", "127.0.0.1"])
def test_a_page_of_another_site_changes_and_reads_nothing(sites: Sites, chromium: Browser, name: str) -> None:
    """A page of another port of this machine counts as another site, too."""
    page = chromium.new_page()
    statuses: list[int] = []
    page.context.on(
        "response", lambda answer: statuses.append(answer.status) if f":{sites.own}" in answer.url else None
    )
    page.goto(f"http://{name}:{sites.other}/")
    found = page.evaluate(ATTACK, [f"http://127.0.0.1:{sites.own}", CHANGE])
    page.context.close()
    assert found["socket"] == "refused"
    assert found["json"] == "blocked"
    assert set(statuses) <= {403}, "and the browser itself stops some before they are sent"
    assert "attacked" not in _limits(sites.own)


def test_a_name_that_was_made_to_point_here_is_refused(sites: Sites, chromium: Browser) -> None:
    page = chromium.new_page()
    answer = page.goto(f"http://rebound.test:{sites.own}/")
    assert answer is not None and answer.status == 403
    assert "is not a name of this machine" in page.content()
    said = page.evaluate(
        "async change => (await fetch('/graphql', {method: 'POST', headers: {'Content-Type': 'application/json'},"
        " body: JSON.stringify({query: change})})).status",
        CHANGE,
    )
    page.context.close()
    assert said == 403
    assert "attacked" not in _limits(sites.own)


def test_the_own_page_works_and_the_attack_would_have(sites: Sites, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{sites.own}/")
    said = page.evaluate(
        "async change => (await fetch('/graphql', {method: 'POST', headers: {'Content-Type': 'application/json'},"
        " body: JSON.stringify({query: change})})).status",
        CHANGE,
    )
    page.context.close()
    assert said == 200
    assert "attacked" in _limits(sites.own)

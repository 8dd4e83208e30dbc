"""The nginx example of ``deploy/`` with the real nginx in front of the real web interface."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from neumf_assets_tests.conftest import need
from neumf_assets_tests.e2e.servers import BIN, DEPLOY, Server, free_port, listening, wait_for

pytestmark = pytest.mark.e2e

USER, PASSWORD = "alice", "correct horse"


@dataclass(frozen=True)
class Proxy:
    port: int
    plain_port: int
    trust: ssl.SSLContext

    def get(self, path: str, user: str | None = None, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and content of an answer."""
        request = urllib.request.Request(f"https://localhost:{self.port}{path}", data=body)
        request.add_header("Content-Type", "application/json")
        if user is not None:
            request.add_header("Authorization", basic(user))
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.trust) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def basic(user: str) -> str:
    """The header of basic authentication."""
    return "Basic " + base64.b64encode(user.encode()).decode()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The web interface, without any study."""
    folder, port = tmp_path_factory.mktemp("webserver"), free_port()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    command = [
        str(BIN / "python"),
        "-m",
        "neumf_assets.commands.webserver",
        "--empty-workspace",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = Server(command, folder / "log", env={**os.environ, "DAGSTER_HOME": str(folder)}, cwd=folder)
    try:
        server.start()
        wait_for(lambda: listening(port), "the web interface")
        yield port
    finally:
        server.stop(patience=10)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, backend: int) -> Iterator[Proxy]:
    """The nginx of Debian's package with ``deploy/nginx.conf``; only its places and ports are changed."""
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    need(nginx, "nginx")
    need(shutil.which("openssl"), "openssl")
    folder, port, plain = tmp_path_factory.mktemp("nginx"), free_port(), free_port()
    folder.parent.chmod(0o755)  # nginx's workers are no root, and read the passwords themselves
    folder.chmod(0o755)
    _certificate(folder)
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / "htpasswd").write_text(f"{USER}:{hashed}\n")
    text = (DEPLOY / "nginx.conf").read_text()
    for ours, test in (
        ("/etc/neumf", str(folder)),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("443 ssl", f"127.0.0.1:{port} ssl"),
        ("3000", str(backend)),
    ):
        assert ours in text
        text = text.replace(ours, test)
    (folder / "site.conf").write_text(text)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        + ("user root;\n" if os.getuid() == 0 else "")
        + "events {}\nhttp {\n"
        + f"access_log off;\n{temporary}include {folder}/site.conf;\n}}\n"
    )
    subprocess.run([nginx, "-t", "-c", str(folder / "nginx.conf")], check=True, capture_output=True)
    server = Server([nginx, "-c", str(folder / "nginx.conf")], folder / "log")
    try:
        server.start()
        wait_for(lambda: listening(port), "nginx", 30)
        yield Proxy(port, plain, ssl.create_default_context(cafile=str(folder / "tls.crt")))
    finally:
        server.stop(patience=10)


def _certificate(folder: Path) -> None:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("user", [None, f"{USER}:wrong", f"mallory:{PASSWORD}"])
@pytest.mark.parametrize("path", ["/", "/graphql", "/server_info"])
def test_without_the_password_nothing_is_shown(proxy: Proxy, user: str | None, path: str) -> None:
    status, content = proxy.get(path, user)
    assert status == 401
    assert b"dagster" not in content.lower()


def test_with_the_password_the_interface_and_graphql_answer(proxy: Proxy) -> None:
    status, page = proxy.get("/", f"{USER}:{PASSWORD}")
    assert status == 200
    assert b"Dagster" in page
    status, answer = proxy.get(
        "/graphql", f"{USER}:{PASSWORD}", json.dumps({"query": "{ version }"}).encode()
    )
    assert status == 200
    assert json.loads(answer)["data"]["version"]


def test_websockets_pass_with_the_password_only(proxy: Proxy) -> None:
    import aiohttp

    url = f"https://localhost:{proxy.port}/graphql"

    async def first_answer(headers: dict[str, str]) -> dict[str, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=("graphql-ws",), headers=headers, ssl=proxy.trust) as wire,
        ):
            await wire.send_json({"type": "connection_init", "payload": {}})
            found: dict[str, str] = await wire.receive_json(timeout=30)
            return found

    assert (
        asyncio.run(first_answer({"Authorization": basic(f"{USER}:{PASSWORD}")}))["type"] == "connection_ack"
    )
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        asyncio.run(first_answer({}))


def test_port_80_leads_to_tls(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.plain_port, timeout=30)
    connection.request("GET", "/runs?a=b", headers={"Host": "evil.test"})
    answer = connection.getresponse()
    assert answer.status == 301
    assert answer.headers["Location"] == "https://neumf.example.org/runs?a=b", (
        "the name is ours, not the request's"
    )


@pytest.mark.parametrize("user", [None, f"{USER}:{PASSWORD}"])
def test_browsers_are_told_to_keep_to_tls_and_to_frame_nothing(proxy: Proxy, user: str | None) -> None:
    connection = http.client.HTTPSConnection("localhost", proxy.port, timeout=30, context=proxy.trust)
    connection.request("GET", "/", headers={"Authorization": basic(user)} if user else {})
    headers = connection.getresponse().headers
    assert headers.get_all("Strict-Transport-Security") == ["max-age=31536000"]
    assert headers.get_all("X-Frame-Options") == ["SAMEORIGIN"]
    assert any(
        "frame-ancestors 'self'" in policy for policy in headers.get_all("Content-Security-Policy", [])
    )
    assert "nginx/" not in headers.get("Server", "")


def test_old_tls_is_refused(proxy: Proxy) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", proxy.port), 30) as wire,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        old.wrap_socket(wire)


def test_a_page_of_another_site_is_refused_even_with_the_password(proxy: Proxy) -> None:
    body = json.dumps({"query": "{ version }"})
    for origin, status in (("https://evil.test", 403), (f"https://localhost:{proxy.port}", 200)):
        connection = http.client.HTTPSConnection("localhost", proxy.port, timeout=30, context=proxy.trust)
        headers = {"Authorization": basic(f"{USER}:{PASSWORD}"), "Origin": origin}
        connection.request("POST", "/graphql", body, headers | {"Content-Type": "application/json"})
        assert connection.getresponse().status == status, origin


def test_large_requests_are_refused(proxy: Proxy) -> None:
    assert proxy.get("/graphql", f"{USER}:{PASSWORD}", b"x" * (5 << 20))[0] == 413


def test_requests_without_end_are_refused(proxy: Proxy) -> None:
    """Last, for the address of these tests has used its share up afterwards."""
    with ThreadPoolExecutor(
        8
    ) as pool:  # 300 at once and 50 a second: only in 24 seconds they would all be answered
        found = list(pool.map(lambda _: proxy.get("/")[0], range(1500)))
    assert set(found) == {401, 429}
    assert found.count(401) >= 300

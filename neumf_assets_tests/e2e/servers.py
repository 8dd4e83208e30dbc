"""Real servers for tests, each on a free port of 127.0.0.1: PostgreSQL, S3, and the deployment itself."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from neumf_assets_tests.conftest import need

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BIN = Path(sys.executable).parent
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(true: Callable[[], Any], what: str, seconds: float = 240.0, every: float = 0.5) -> Any:
    """The first true value of a function that is asked again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(every)
    raise AssertionError(f"{what} did not come within {seconds:.0f} s")


def listening(port: int) -> bool:
    """Whether somebody accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A process in a session of its own, so that all its children can be ended with it."""

    def __init__(self, command: list[str], log: Path, **options: Any) -> None:
        self.command, self.log, self.options = command, log, options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self.options,
            )

    def stop(self, with_signal: signal.Signals = signal.SIGINT, patience: float = 30.0) -> None:
        """Ask the process to end, and kill whatever is left of its session."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(with_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the process and its children: what a power cut looks like from inside."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


class Postgres(Server):
    """A PostgreSQL of Debian's package with one empty database; it refuses to run as root."""

    user, password, database = "neumf", "secret", "neumf"

    def __init__(self) -> None:
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        found = installed[-1] if installed else shutil.which("initdb")
        need(found, "postgresql")
        binaries = Path(str(found)).parent
        self.folder = Path(tempfile.mkdtemp(prefix="neumf-postgres-"))
        self.port = free_port()
        data = self.folder / "data"
        options: dict[str, Any] = {}
        if os.getuid() == 0:
            options = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self.folder, "nobody", "nogroup")
        (self.folder / "password").write_text(self.password)
        (self.folder / "password").chmod(0o644)
        command = [str(binaries / "initdb"), "-D", str(data), "-U", self.user, "-A", "scram-sha-256"]
        command += [f"--pwfile={self.folder / 'password'}", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **options)
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
        }
        settings |= {"fsync": "off", "shared_buffers": "32MB", "max_connections": 100}
        arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        super().__init__(
            [str(binaries / "postgres"), "-D", str(data), *arguments],
            self.folder / "log",
            cwd=self.folder,
            **options,
        )

    def start(self) -> None:
        """Start, and wait until it answers."""
        super().start()
        wait_for(self._answers, "PostgreSQL", 60)

    def ask(self, query: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """The rows of an SQL query; none for a command."""
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=database or self.database,
            connect_timeout=5,
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def environment(self) -> dict[str, str]:
        """The variables of ``deploy/neumf.env`` that lead here."""
        return {
            "NEUMF_PG_HOST": "127.0.0.1",
            "NEUMF_PG_PORT": str(self.port),
            "NEUMF_PG_USER": self.user,
            "NEUMF_PG_PASSWORD": self.password,
            "NEUMF_PG_DATABASE": self.database,
        }

    def _answers(self) -> bool:
        import psycopg2

        try:
            return bool(self.ask("SELECT 1", "postgres"))
        except psycopg2.OperationalError:
            return False


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL with an empty database."""
    server = Postgres()
    try:
        server.start()
        server.ask(f"CREATE DATABASE {server.database}", "postgres")
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


class Wire:
    """A TCP relay in front of a server that can be cut, at once or after so many bytes from the client."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.bytes_left: float = float("inf")
        self.whole = True
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, after_bytes: float = 0) -> None:
        """Break all connections, and refuse new ones, once the clients have sent so much more."""
        self.bytes_left = after_bytes
        if after_bytes <= 0:
            self._break()

    def mend(self) -> None:
        """Let connections through again."""
        self.bytes_left, self.whole = float("inf"), True

    def close(self) -> None:
        """End the relay."""
        self._break()
        self._listener.close()

    def _break(self) -> None:
        self.whole = False
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self.whole:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            self._open += [client, server]
            threading.Thread(target=self._relay, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._relay, args=(server, client, False), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while content := source.recv(4096):
                if counted:
                    self.bytes_left -= len(content)
                    if self.bytes_left <= 0 and self.whole:
                        self._break()
                target.sendall(content)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class ObjectStore(Server):
    """An S3 server (moto) with one empty bucket, behind a wire that can be cut."""

    bucket = "neumf"

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        super().__init__(command, folder / "s3.log")
        self.wire = Wire(self.port)

    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.wire.port}"}

    def client(self) -> Any:
        """A boto3 client that does not go through the wire."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def objects(self) -> dict[str, int]:
        """Size of every object by key."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A running S3 server with an empty bucket."""
    server = ObjectStore(folder)
    try:
        server.start()
        wait_for(lambda: listening(server.port), "the S3 server", 120)
        server.client().create_bucket(Bucket=server.bucket)
        yield server
    finally:
        server.wire.close()
        server.stop()


def environment_file() -> dict[str, str]:
    """The variables of ``deploy/neumf.env``, read as systemd does."""
    lines = (DEPLOY / "neumf.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def unit(name: str) -> Mapping[str, str]:
    """The ``[Service]`` section of a systemd unit in ``deploy/``."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / f"neumf-{name}.service")
    return dict(parser["Service"])


class Deployment:
    """The services of ``deploy/`` as their systemd units start them, with a home, ports and keys of their own."""

    def __init__(self, home: Path, overrides: Mapping[str, str]) -> None:
        self.home = home
        ports = {"NEUMF_PORT": str(free_port()), "NEUMF_CODE_PORT": str(free_port())}
        places = {"NEUMF_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
        own = {**environment_file(), **ports, **places, **overrides}
        others = {k: v for k, v in os.environ.items() if not k.startswith(("NEUMF_", "DAGSTER_", "AWS_"))}
        self.environment = {**others, **own, "OMP_NUM_THREADS": "1"}
        (home / "dagster").mkdir(parents=True)
        for file in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(DEPLOY / file, home / "dagster" / file)
        self.services = {name: self._service(name) for name in ("code", "webserver", "daemon")}

    @property
    def url(self) -> str:
        """Address of the web interface."""
        return f"http://127.0.0.1:{self.environment['NEUMF_PORT']}"

    def up(self) -> None:
        """Start the services and wait until the study's definitions are there."""
        self.services["code"].start()
        wait_for(lambda: listening(int(self.environment["NEUMF_CODE_PORT"])), "the code server")
        self.services["webserver"].start()
        self.services["daemon"].start()
        wait_for(self._loaded, "the web interface")
        wait_for(self.ready, "an answer out of all storages", 120)

    def down(self) -> None:
        """Stop all services."""
        for name in ("daemon", "webserver", "code"):
            self.services[name].stop(patience=10)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise OSError(f"HTTP {error.code}: {error.read().decode(errors='replace')[:2000]}") from None
        assert "errors" not in found, found["errors"]
        data: dict[str, Any] = found["data"]
        return data

    def read(self, query: str, patience: float = 120.0, **variables: Any) -> dict[str, Any]:
        """The data of a question that may be asked again, as a browser does, if it fails at first.

        While the machine is busy, the web interface gives up on the database after some seconds.
        """
        end = time.monotonic() + patience
        while True:
            try:
                return self.ask(query, **variables)
            except OSError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    def ready(self) -> bool:
        """Whether an answer comes out of the storages of runs, events and schedules.

        The web interface keeps one connection to each. When PostgreSQL has been away it finds out about each
        by an error, which ends the request at hand.
        """
        query = """query Ready($repository: RepositorySelector!) {
             runsOrError(limit: 1) { ... on Runs { results { id } } }
             assetNodes { assetMaterializations(limit: 1) { timestamp } }
             sensorsOrError(repositorySelector: $repository) { ... on Sensors { results { sensorState {
               status ticks(limit: 1) { timestamp } } } } } }"""
        place = {"repositoryName": "__repository__", "repositoryLocationName": "neumf_assets"}
        try:
            self.ask(query, repository=place)
        except OSError:
            return False
        return True

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The outcome of ``neumf-assets …`` in the services' environment."""
        return subprocess.run(
            [sys.executable, "-m", "neumf_assets.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            **options,
        )

    def logs(self) -> str:
        """Why runs failed and the ends of the services' logs, for the message of a failed test."""
        parts = [f"== {path.name}\n{path.read_text()[-3000:]}" for path in self.home.glob("*.log")]
        return "\n".join([*parts, "== failures", *self._failures()])

    def _failures(self) -> list[str]:
        """The failed runs and what their last events say."""
        query = """{ runsOrError(filter: {statuses: [FAILURE]}) { ... on Runs { results { id status
             eventConnection { events { ... on MessageEvent { timestamp level message stepKey }
               ... on ErrorEvent { error { className message stack } } } } } } } }"""
        try:
            runs = self.ask(query)["runsOrError"]["results"]
        except (OSError, AssertionError) as error:
            return [f"they could not be asked for: {error}"]
        return [
            json.dumps({"run": run["id"], "events": run["eventConnection"]["events"][-15:]}) for run in runs
        ]

    def _service(self, name: str) -> Server:
        line = (
            unit(name)["ExecStart"]
            .replace("/opt/neumf/bin", str(BIN))
            .replace("/var/lib/neumf", str(self.home))
        )
        command = re.sub(r"\$\{(\w+)\}", lambda found: self.environment[found[1]], line).split()
        return Server(command, self.home / f"{name}.log", env=self.environment, cwd=self.home)

    def _loaded(self) -> bool:
        query = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {"
        query += " __typename } } } } }"
        try:
            entries = self.ask(query)["workspaceOrError"].get("locationEntries", [])
        except (OSError, urllib.error.URLError):
            return False
        kinds = [(entry["locationOrLoadError"] or {}).get("__typename") for entry in entries]
        return kinds == ["RepositoryLocation"]

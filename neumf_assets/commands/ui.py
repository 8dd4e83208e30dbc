"""``neumf-assets ui``: the web interface and the daemon of one home, on 127.0.0.1, once."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import urllib.request
from http.client import HTTPException

from neumf_assets.core.errors import BadSettings
from neumf_assets.home import Home
from neumf_assets.running.file_lock import FileLock

HOST = "127.0.0.1"
WAIT_SECONDS = 600.0
"""So long a machine with much else to do may take to answer for the first time."""


def serve(port: int) -> int:
    """Serve until interrupted; the address of what is there already, where this home is served.

    Raises
    ------
    BadSettings
        If the port is taken.
    """
    home = Home.from_environment()
    home.prepare()
    lock = FileLock(home.locks / "ui.lock")
    if not lock.acquire(port=port):
        there = lock.holder()
        print(f"Already served at http://{HOST}:{there.get('port', '?')} by process {there.get('pid', '?')}.")
        return 0
    try:
        _check_free(port)
        home.announce()
        # of Dagster's dependencies to their developers; what ours are told stands in the tests
        os.environ.setdefault("PYTHONWARNINGS", "ignore::DeprecationWarning")
        print(f"Starting Dagster; everything lies below {home.root}", flush=True)
        threading.Thread(target=_say_when_ready, args=(port,), daemon=True).start()
        _dagster(str(home.workspace), port)
    finally:
        lock.release()
    return 0


def why_not_free(port: int) -> OSError | None:
    """Return why nothing can be served at a port of this machine, ``None`` where it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error
    return None


def _check_free(port: int) -> None:
    error = why_not_free(port)
    if isinstance(error, PermissionError):
        raise BadSettings(f"Port {port} is not yours to use. Choose one above 1023 with --port.")
    if error is not None:
        raise BadSettings(f"Port {port} of {HOST} is taken by another program. Choose another with --port.")


def _say_when_ready(port: int) -> None:
    """Print the address once it answers, last of all that starting says."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/server_info", timeout=10):
                break
        except (OSError, HTTPException):
            time.sleep(0.5)
    else:
        return
    print(f"Dagster at http://{HOST}:{port} (Ctrl-C ends it)", flush=True)


def _dagster(workspace: str, port: int) -> None:
    from neumf_assets.dagster_internals import develop

    arguments = ["-w", workspace, "--host", HOST, "--port", str(port)]
    try:
        develop(arguments, [sys.executable, "-m", "neumf_assets.commands.webserver"])
    except SystemExit as ended:  # click's own way to return
        if ended.code not in (0, None):
            raise

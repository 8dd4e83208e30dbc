"""Dagster's webserver for this machine's own browser pages alone: ``python -m neumf_assets.commands.webserver …``.

Whatever page a browser has open may send requests to 127.0.0.1, and a foreign name may be made to point there (DNS
rebinding). Dagster answers them all, and its requests start runs. So a request must name this machine as its host,
and must not say that a page of another site has made it. Programs that are no browsers send neither header and are
answered.

Takes the options of ``dagster-webserver``. ``NEUMF_UI_HOSTS`` names further hosts (comma-separated, without port)
for which it answers, as behind a reverse proxy that hands on the name which users type.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
HOSTS_VARIABLE = "NEUMF_UI_HOSTS"
_HEADERS = {
    b"x-frame-options": b"SAMEORIGIN",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class OwnSiteOnly:
    """ASGI middleware that refuses what comes from pages of other sites, and names that are not this machine's.

    Parameters
    ----------
    app
        What answers all else.
    hosts
        Names (without port) by which it may be called.
    """

    def __init__(self, app: App, hosts: Iterable[str] = LOCAL_HOSTS) -> None:
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with the reason."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        reason = refusal(scope, self.hosts)
        if reason is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
        else:
            body = f"Refused: {reason}\n".encode()
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
            ]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def refusal(scope: Message, hosts: frozenset[str]) -> str | None:
    """Return why a request is refused, ``None`` where it is not."""
    headers: dict[bytes, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), []).append(value.decode("latin-1"))
    named = headers.get(b"host", [])
    if len(named) != 1 or _host_of(named[0]) not in hosts:
        called = named[0] if named else "no host"
        return f"{called!r} is not a name of this machine; {HOSTS_VARIABLE} names further ones."
    for origin in headers.get(b"origin", []):
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or parts.netloc.lower() != named[0].lower():
            return f"a page of another site, {origin!r}, has sent it."
    site = headers.get(b"sec-fetch-site", ["none"])[0]
    if site in ("same-origin", "none") or (scope["type"] == "http" and _is_followed_link(scope, headers)):
        return None
    return f"a page of another site has sent it (Sec-Fetch-Site: {site})."


def _is_followed_link(scope: Message, headers: dict[bytes, list[str]]) -> bool:
    """Tell whether a person has followed a link to a page, which changes nothing: no request of a script or frame."""
    mode, target = (headers.get(name, [""])[0] for name in (b"sec-fetch-mode", b"sec-fetch-dest"))
    page = not scope["path"].rstrip("/").endswith("/graphql")
    return scope["method"] in ("GET", "HEAD") and mode == "navigate" and target == "document" and page


def _host_of(value: str) -> str | None:
    """Return the name of a ``Host`` header without port, ``None`` where it is none."""
    try:
        parts = urlsplit(f"//{value}")
        _ = parts.port
    except ValueError:
        return None
    plain = parts.netloc == value and parts.username is None and parts.password is None
    return (parts.hostname or "").rstrip(".") if plain else None


def _with_headers(send: Send) -> Send:
    """Return what sends a response with what browsers need to be told besides."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = list(message.get("headers", []))
            there = {name.lower() for name, _ in own}
            message["headers"] = own + [pair for pair in _HEADERS.items() if pair[0] not in there]
        await send(message)

    return sending


def known_hosts() -> frozenset[str]:
    """Return the names by which the webserver may be called."""
    further = os.environ.get(HOSTS_VARIABLE, "").split(",")
    return LOCAL_HOSTS | {host.strip().lower() for host in further if host.strip()}


def main() -> None:
    """Run Dagster's webserver behind the check."""
    from neumf_assets.dagster_internals import run_webserver

    run_webserver(lambda app: OwnSiteOnly(app, known_hosts()))


if __name__ == "__main__":
    main()

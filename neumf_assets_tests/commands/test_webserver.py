"""Which requests the webserver answers: this machine's own pages and programs, no page of another site."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from neumf_assets.commands.webserver import (
    LOCAL_HOSTS,
    Message,
    OwnSiteOnly,
    Receive,
    Send,
    known_hosts,
    refusal,
)


def scope(kind: str = "http", method: str = "POST", path: str = "/graphql", **headers: str) -> dict[str, Any]:
    given = {"host": "127.0.0.1:3000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in given.items() if value != "-"]
    return {"type": kind, "method": method, "path": path, "headers": pairs}


LINK = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}


@pytest.mark.parametrize(
    "request_",
    [
        scope(),
        scope(host="localhost:3000"),
        scope(host="LOCALHOST"),
        scope(host="[::1]:3000"),
        scope(host="localhost.:3000"),
        scope(origin="http://127.0.0.1:3000"),
        scope(origin="http://127.0.0.1:3000", sec_fetch_site="same-origin", sec_fetch_mode="cors"),
        scope(sec_fetch_site="none", method="GET", path="/"),
        scope(method="GET", path="/runs", **LINK),
        scope("websocket", origin="http://127.0.0.1:3000"),
        scope("websocket"),
    ],
)
def test_own_pages_programs_and_followed_links_are_answered(request_: dict[str, Any]) -> None:
    assert refusal(request_, LOCAL_HOSTS) is None


@pytest.mark.parametrize(
    "request_",
    [
        scope(host="evil.test:3000"),
        scope(host="127.0.0.1.evil.test"),
        scope(host="localhost@evil.test"),
        scope(host="evil.test#127.0.0.1"),
        scope(host="127.0.0.1:port"),
        scope(host="[::1"),
        scope(host=""),
        scope(host="-"),
        scope(host="0.0.0.0:3000"),
        scope(origin="http://evil.test"),
        scope(origin="http://127.0.0.1:4000"),
        scope(origin="http://localhost:3000"),
        scope(origin="null"),
        scope(origin="file://"),
        scope(origin="http://127.0.0.1:3000@evil.test"),
        scope(sec_fetch_site="cross-site", sec_fetch_mode="no-cors"),
        scope(sec_fetch_site="same-site"),
        scope(method="GET", path="/", **LINK | {"sec_fetch_dest": "iframe"}),
        scope(method="GET", path="/", **LINK | {"sec_fetch_mode": "no-cors"}),
        scope(method="GET", path="/graphql", **LINK),
        scope(method="GET", path="/graphql/", **LINK),
        scope(method="POST", path="/", **LINK),
        scope("websocket", origin="http://evil.test"),
        scope("websocket", sec_fetch_site="cross-site"),
    ],
)
def test_what_another_site_may_have_sent_is_refused(request_: dict[str, Any]) -> None:
    assert refusal(request_, LOCAL_HOSTS)


def test_two_hosts_are_refused() -> None:
    twice = scope()
    twice["headers"].append((b"Host", b"127.0.0.1:3000"))
    assert refusal(twice, LOCAL_HOSTS)


def test_hosts_behind_a_proxy_are_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMF_UI_HOSTS", " Neumf.Example.org, ,other.test")
    assert known_hosts() == LOCAL_HOSTS | {"neumf.example.org", "other.test"}
    named = scope(host="neumf.example.org", origin="https://neumf.example.org")
    assert refusal(named, known_hosts()) is None


async def _answered(request_: dict[str, Any]) -> list[Message]:
    sent: list[Message] = []

    async def inner(_: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"DENY")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await OwnSiteOnly(inner)(request_, receive, send)
    return sent


def test_an_answer_says_who_may_frame_it_once() -> None:
    start, _ = asyncio.run(_answered(scope()))
    names = [name.lower() for name, _ in start["headers"]]
    assert start["status"] == 200 and names.count(b"x-frame-options") == 1
    assert (b"X-Frame-Options", b"DENY") in start["headers"]
    assert b"cross-origin-resource-policy" in names


def test_a_refusal_tells_the_reason_and_never_reaches_dagster() -> None:
    start, body = asyncio.run(_answered(scope(host="evil.test")))
    assert start["status"] == 403
    assert b"'evil.test' is not a name of this machine" in body["body"]
    (closed,) = asyncio.run(_answered(scope("websocket", origin="http://evil.test")))
    assert closed["type"] == "websocket.close" and closed["code"] == 1008

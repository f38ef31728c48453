"""Pages of other sites, in browsers that do not say from where they ask: none makes work or reads what is for us."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from hypercorn.typing import HTTPScope
from hypothesis import given
from hypothesis import strategies as st
from quart import Response
from web.test_node import node

from spegel_consul import log
from spegel_consul.http.server.listen import ListenAddress, listen
from spegel_consul.http.server.serve import serve
from spegel_consul.web import monitoring
from spegel_consul.web.access.own_names import OwnNames, allowed_host
from spegel_consul.web.copies.own_copies import OwnCopies
from spegel_consul.web.node_views import Node
from spegel_consul.web.queries import questions
from spegel_consul.web.queries.trial_pull import Puller
from spegel_consul.web.web_app import build_app

HOST = "10.0.0.1:9090"
IMAGE = "docker.io/library/app:v1"
FOREIGN: list[dict[str, str]] = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://10.0.0.1:8080"},
    {"origin": "http://10.0.0.1:9090.evil.example"},
    {"referer": "http://evil.example/10.0.0.1:9090"},
    {"sec-fetch-site": "cross-site", "origin": f"http://{HOST}"},
    {"sec-fetch-site": "same-site"},
]
OWN: list[dict[str, str]] = [
    {},
    {"origin": f"http://{HOST}"},
    {"referer": f"http://{HOST}/debug/web/"},
    {"sec-fetch-site": "same-origin", "origin": f"http://{HOST}"},
    {"sec-fetch-site": "none"},
]


@pytest.fixture(autouse=True)
def pulled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was pulled."""
    names: list[str] = []

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"providers": [], "ms": 0.1, "own": False, "problem": None, "key": IMAGE}

    async def pull(_: Puller, reference: Any) -> None:
        names.append(str(reference))

    monkeypatch.setattr(questions, "lookup", nothing)
    monkeypatch.setattr(Puller, "pull", pull)
    return names


async def send(method: str, path: str, headers: Mapping[str, str], **options: Any) -> Response:
    scope: HTTPScope = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 9090)}  # type: ignore[typeddict-item]
    client = build_app(node()).test_client()
    return await client.open(path, method=method, headers={"host": HOST, **headers}, scope_base=scope, **options)


def ways() -> list[tuple[str, dict[str, Any]]]:
    return [(f"/api/measure?image={IMAGE}", {}), ("/debug/web/measure", {"form": {"image": IMAGE}})]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_another_site_does_not_measure(headers: dict[str, str], pulled: list[str]) -> None:
    for path, options in ways():
        assert (await send("POST", path, headers, **options)).status_code == 403
    assert pulled == []


@pytest.mark.parametrize("headers", OWN)
async def test_this_site_and_programs_do(headers: dict[str, str], pulled: list[str]) -> None:
    for path, options in ways():
        assert (await send("POST", path, headers, **options)).status_code == 200
    assert pulled == [IMAGE, IMAGE]


async def test_a_link_or_a_picture_measures_nothing(pulled: list[str]) -> None:
    response = await send("GET", f"/api/measure?image={IMAGE}", {})
    assert response.status_code == 405
    assert "POST" in (await response.get_json())["error"]
    response = await send("GET", f"/debug/web/measure?image={IMAGE}", {})
    assert response.status_code == 200
    assert f'value="{IMAGE}"' in await response.get_data(as_text=True), "asked for, by a button to press"
    assert pulled == []


NOT_OWN = [
    "evil.example",
    "evil.example:9090",
    "EVIL.EXAMPLE",
    "n1.evil.example",
    "localhost.evil.example",
    "consul.evil.example",
    "evilconsul",
    "10.0.0.1.evil.example",
    "[::1",
    "",
]
NAMES = [
    HOST,
    "10.0.0.1",
    "localhost:9090",
    "LOCALHOST",
    "[::1]:9090",
    "[fe80::1%25eth0]:9090",
    "n1:9090",
    "N1",
    "n1.",
    "spegel-metrics.service.consul:9090",
    "n7.node.dc1.consul",
    "n2:9090",  # of the catalog
    "status.example.com",
    "a.b.nodes.example.com:443",
]


FOR_MACHINES = ("/id", "/livez", "/metrics", "/readyz")


def shown() -> Node:
    made = node("10.0.0.2", "10.0.0.9")
    made.allowed_hosts = ("status.example.com", "*.nodes.example.com")
    return made


@asynccontextmanager
async def served() -> AsyncIterator[tuple[str, int]]:
    """The application on a port of loopback, as the sidecar serves it."""
    sock = listen(ListenAddress("127.0.0.1", 0), "--metrics-addr")
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        address = sock.getsockname()
        await nursery.start(
            partial(serve, monitoring.build_app(shown(), OwnCopies(shown())), sock, stop=stop.wait, drain_timeout=0.1)
        )
        try:
            yield address
        finally:
            stop.set()


async def exchange(address: tuple[str, int], method: str, path: str, *fields: str, body: str = "") -> tuple[int, str]:
    """The status and the body of an answer over a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", *fields, "Connection: close", f"Content-Length: {len(body)}"]
    with trio.fail_after(30):
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await stream.send_all(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            answer = b"".join([piece async for piece in stream])
    return int(answer[9:12]), answer.partition(b"\r\n\r\n")[2].decode()


def endpoints() -> list[tuple[str, str]]:
    """Each method and path that the metrics port has."""
    found = {
        (method, re.sub(r"<.*?>", "app.js", rule.rule))
        for rule in build_app(shown()).url_map.iter_rules()
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}
    }
    assert len(found) >= 14
    return sorted(found)


@pytest.mark.parametrize("host", NOT_OWN)
async def test_a_name_that_others_pointed_here_is_answered_nothing(host: str, pulled: list[str]) -> None:
    before = log.level.current
    async with served() as address:
        for method, path in endpoints():
            status, body = await exchange(
                address, method, f"{path}?image={IMAGE}&key={IMAGE}", f"Host: {host}", body="debug"
            )
            assert status in (400, 421), path  # 400 is of what is no Host at all
            assert "n1" not in body.replace(host, "")
            if status == 421:
                assert "--web-allowed-hosts" in json.loads(body)["error"]
    assert pulled == []
    assert log.level.current == before


@pytest.mark.parametrize("host", ["evil.example", "node7.corp.example:9090"])
async def test_what_monitoring_reads_is_answered_by_any_name(host: str) -> None:
    async with served() as address:
        for path in FOR_MACHINES:
            assert (await exchange(address, "GET", path, f"Host: {host}"))[0] == 200, path
        status, body = await exchange(address, "GET", "/readyz?format=json", f"Host: {host}")
        assert (status, json.loads(body)["warnings"]) == (200, [])
        status, body = await exchange(address, "GET", "/readyz?format=json", "Host: n1")
        assert (status, len(json.loads(body)["warnings"])) == (200, 1)


@pytest.mark.parametrize("host", NAMES)
async def test_addresses_and_own_names_are_answered(host: str) -> None:
    async with served() as address:
        for path in ("/api/status", "/debug/tasks", "/debug/web/"):
            assert (await exchange(address, "GET", path, f"Host: {host}"))[0] == 200, path
        assert (await exchange(address, "PUT", "/api/log-level", f"Host: {host}", body="loud"))[0] == 400


@pytest.mark.parametrize(
    "field",
    [
        "Forwarded: for=10.9.9.9",
        "X-Forwarded-For: 10.9.9.9",
        "X-Real-IP: 10.9.9.9",
        "Via: 1.1 proxy",
        "x-forwarded-host: a",
    ],
)
async def test_what_comes_through_a_proxy_does_not_come_from_this_machine(field: str) -> None:
    async with served() as address:
        for method, path in (("GET", "/debug/tasks"), ("PUT", "/api/log-level")):
            assert (await exchange(address, method, path, f"Host: {HOST}", field, body="info"))[0] == 403, path
        assert (await exchange(address, "GET", "/api/status", f"Host: {HOST}", field))[0] == 200


@pytest.mark.parametrize("text", ["a b", "evil.example:9090", "http://a", "*", "*.", "a.*.b", "", ".", "ä.example"])
def test_what_is_no_name_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        allowed_host(text)


@given(st.text(max_size=40))
def test_any_text_is_a_host_or_not(text: str) -> None:
    assert OwnNames("n1", set).have(text) in (True, False)

"""Pages of other sites, in browsers that do not say from where they ask: none makes work or reads what is for us."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypercorn.typing import HTTPScope
from quart import Response
from web.test_node import node

from spegel_consul.web import ask
from spegel_consul.web.app import build_app
from spegel_consul.web.pull import Puller

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

    monkeypatch.setattr(ask, "lookup", nothing)
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


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9090", "n1.evil.example", "localhost.evil.example", ""])
async def test_a_name_that_leads_here_reads_nothing_that_is_for_this_machine(host: str) -> None:
    for method, path in (("GET", "/debug/tasks"), ("GET", "/debug/memory?seconds=1"), ("PUT", "/api/log-level")):
        response = await send(method, path, {"host": host}, data=b"info")
        assert response.status_code == 403, path


@pytest.mark.parametrize("host", [HOST, "10.0.0.1", "localhost:9090", "LOCALHOST", "[::1]:9090", "n1:9090", "N1"])
async def test_addresses_and_own_names_do(host: str) -> None:
    assert (await send("GET", "/debug/tasks", {"host": host})).status_code == 200
    assert (await send("PUT", "/api/log-level", {"host": host}, data=b"loud")).status_code == 400

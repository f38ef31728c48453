"""A node with fake runtimes that preheats."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypercorn.typing import HTTPScope
from quart import Response
from quart_trio import QuartTrio
from web.test_node import node

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.reference import Reference
from spegel_consul.runtimes.pulls import CantPull, Received
from spegel_consul.web import report_stream
from spegel_consul.web.node_views import Node, PreheatRules
from spegel_consul.web.preheat import own_preheat
from spegel_consul.web.web_app import build_app

APP = "docker.io/library/app:v1"
OWN = f"/api/preheat/own?image={APP}"
CLUSTER = f"/api/preheat?image={APP}"
HERE = "127.0.0.1"


@dataclass
class Runtime:
    """A runtime whose pull ends when ``go`` is set, with ``failure`` if there is one."""

    name: str = "containerd k8s.io"
    failure: CantPull | Exception | None = None
    go: trio.Event = field(default_factory=trio.Event)
    began: trio.Event = field(default_factory=trio.Event)
    pulled: list[str] = field(default_factory=list)
    cancelled: trio.Event = field(default_factory=trio.Event)

    async def pull(self, reference: Reference, within: float, received: Received) -> None:
        self.began.set()
        received(7)
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        if self.failure is not None:
            raise self.failure
        self.pulled.append(str(reference))


@dataclass
class Runtimes:
    found: Sequence[Runtime] | CantPull

    async def choose(self, reference: Reference) -> Sequence[Runtime]:
        if isinstance(self.found, CantPull):
            raise self.found
        return self.found


def ready(*runtimes: Runtime) -> Node:
    """A node that takes part in preheats, whose runtimes pull at once."""
    made, runtimes = node(), runtimes or (Runtime(),)
    for runtime in runtimes:
        runtime.go.set()
    images = ImageFilter.build(["docker.io"], [":secret$"])
    made.preheat = PreheatRules(Runtimes(runtimes), images.accepts, catalog_only=False)
    return made


async def ask(
    made: Node | QuartTrio, path: str, *, client: str = HERE, headers: Mapping[str, str] | None = None
) -> Response:
    scope: HTTPScope = {"client": (client, 1), "server": ("10.0.0.1", 9090)}  # type: ignore[typeddict-item]
    app = build_app(made) if isinstance(made, Node) else made
    with trio.fail_after(30):
        return await app.test_client().post(
            path, headers={"host": "10.0.0.1:9090", **(headers or {})}, scope_base=scope
        )


async def refused(made: Node, path: str, **options: Any) -> tuple[int, str]:
    response = await ask(made, path, **options)
    return response.status_code, json.loads(await response.get_data())["error"]


@asynccontextmanager
async def lines(made: Node, path: str = OWN, **options: Any) -> AsyncIterator[list[dict[str, Any]]]:
    async with build_app(made).test_app() as app:
        response = await ask(app, path, **options)
        assert response.status_code == 200, await response.get_data()
        with trio.fail_after(60):
            yield [json.loads(line) for line in (await response.get_data()).splitlines()]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """These stores never learn of an image that was pulled."""
    monkeypatch.setattr(own_preheat, "_INDEXED_WITHIN", 0.01)
    monkeypatch.setattr(report_stream, "_LINE_PERIOD", 0.01)


def service(address: str, port: int, peer_id: str = "") -> HealthyService:
    return HealthyService(address, "spegel-metrics", "n", address, port, meta={"peer_id": peer_id} if peer_id else {})


def line(document: object) -> bytes:
    return json.dumps(document).encode() + b"\n"


def last_states(found: list[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    return {each["node"]: (each["state"], each["reason"]) for document in found for each in document["nodes"]}

"""Peers and catalogs that call themselves what they should not: the page and the commands show it as text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest
from click.testing import CliRunner
from fakes.memory_store import MemoryStore

from spegel_consul.cli import cli
from spegel_consul.commands import sidecar_client
from spegel_consul.consul.api.client import HealthyService
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.peers import PeerInfo, Provider
from spegel_consul.registry.mirror.providers.penalties import Penalties
from spegel_consul.registry.mirror.trace import Traces
from spegel_consul.ring.member_view import MemberView
from spegel_consul.web.node_views import Consul, Node
from spegel_consul.web.web_app import build_app

NAMES = [
    "<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "' onfocus='alert(1)' autofocus='",
    "[bold red]markup[/]",
    "\x1b[2J\x07terminal",
    "a" * 5000,
    "\u202egnp.exe",
]


@dataclass
class FakeRing:
    """Every member is called something nasty, and so are the registries."""

    me: PeerInfo = field(default_factory=lambda: PeerInfo("me", ("/ip4/10.0.0.1/tcp/5001",)))
    at: float = 0.5
    records: int = 0
    unannounced: int = 0
    warning: str | None = None

    def view(self) -> tuple[MemberView, ...]:
        return tuple(
            MemberView(f"peer{n}", (name,), f"{name}:5000", n % 2 == 0, 0, 0.01, 1.0, 3, n / len(NAMES))
            for n, name in enumerate(NAMES)
        )

    def members(self) -> tuple[PeerInfo, ...]:
        return tuple(PeerInfo(member.id, member.routers) for member in self.view() if member.alive)

    @contextmanager
    def lookup(self, key: str, *, count: int = 3) -> Iterator[AsyncIterator[Provider]]:
        async def found() -> AsyncIterator[Provider]:
            for n, name in enumerate(NAMES):
                yield Provider(f"peer{n}", (name, 5000))

        yield found()


@dataclass
class FakeCatalog:
    problem: str | None = None

    @property
    def members(self) -> tuple[HealthyService, ...]:
        return tuple(
            HealthyService(
                f"spegel-router:{name}", "spegel-router", name, name, 1, (), {"peer_id": f"peer{n}", "version": name}
            )
            for n, name in enumerate(NAMES)
        )


@dataclass
class FakeClient:
    answered_at: float | None = None
    renewals: dict[str, int] = field(default_factory=dict)

    async def health_service(self, name: str, **_: object) -> tuple[int, tuple[HealthyService, ...]]:
        return 1, ()


def node() -> Node:
    made = Node(
        name=NAMES[0],
        registry=("10.0.0.1", 5000),
        metrics_address=("10.0.0.1", 9090),
        store_kind="layout",
        store=MemoryStore(),
        ring=FakeRing(),  # type: ignore[arg-type]
        traces=Traces(),
        penalties=Penalties(),
        metrics=Metrics(),
    )
    made.consul = Consul(FakeClient(), None, FakeCatalog(), None)  # type: ignore[arg-type]
    return made


class Markup(HTMLParser):
    """Which elements and attributes are really there."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.attributes |= {name for name, _ in attributes}


async def test_the_page_shows_them_as_text() -> None:
    response = await build_app(node()).test_client().get("/debug/web/")
    assert response.status_code == 200
    body = (await response.get_data()).decode()
    markup = Markup()
    markup.feed(body)
    assert markup.scripts == 1, "the page's own"
    assert not {name for name in markup.attributes if name.startswith("on") or name == "autofocus"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body


@pytest.mark.parametrize("command", [["status"], ["peers"], ["lookup", "docker.io/library/app:v1"]])
async def test_the_commands_show_them_as_text(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    client = build_app(node()).test_client()
    documents = {}
    for path in ("/api/status", "/api/peers", "/api/lookup?key=docker.io/library/app:v1"):
        response = await client.get(path)
        documents[path.partition("?")[0]] = json.loads(await response.get_data())

    def answered(_: str, path: str, *__: Any, **___: Any) -> Any:
        return documents[path.partition("?")[0]]

    monkeypatch.setattr(sidecar_client, "get", answered)
    shown = CliRunner().invoke(cli, command)
    assert "\x1b" not in shown.output
    assert "\x07" not in shown.output
    assert "[bold red]markup[/]" in shown.output
    assert "\u202e" not in shown.output

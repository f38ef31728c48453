"""A preheat of all nodes: which are asked, and what their answers may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from web.test_node import Catalog, Ring, node

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.oci.reference import Reference
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.member_view import MemberView
from spegel_consul.web.access import preheat_access
from spegel_consul.web.node_views import Consul, Node
from spegel_consul.web.preheat import cluster_preheat, own_preheat, peer_preheat, preheat_targets
from spegel_consul.web.preheat.preheat_report import BadLine, ClusterReport, NodePreheat, RuntimePull, State
from spegel_consul.web.preheat.preheat_targets import Target
from tests.web.preheat_runtimes import (
    APP,
    CLUSTER,
    HERE,
    Runtime,
    at_once,
    last_states,
    line,
    lines,
    ready,
    service,
)

__all__ = ["at_once"]


class Members(Ring):
    def __init__(self, *members: MemberView) -> None:
        self.me = PeerInfo("me", ("/ip4/10.0.0.1/tcp/5001",))
        self._members = members

    def view(self) -> tuple[MemberView, ...]:
        return self._members


def member(peer_id: str, host: str, *, alive: bool = True, registry: bool = True) -> MemberView:
    address = f"{host}:5000" if registry else None
    family = "ip6" if ":" in host else "ip4"
    return MemberView(peer_id, (f"/{family}/{host.strip('[]')}/tcp/5001",), address, alive, 0, 0, 0, 0, 0)


@dataclass
class Client:
    services: tuple[HealthyService, ...] | Exception
    answered_at: float | None = None

    async def health_service(self, name: str, **_: object) -> tuple[int, tuple[HealthyService, ...]]:
        assert name == "spegel-metrics"
        if isinstance(self.services, Exception):
            raise self.services
        return 1, self.services


async def targets(services: tuple[HealthyService, ...] | Exception | None, count: int | None = None) -> list[Target]:
    made = node()
    members = [member("p2", "10.0.0.2"), member("p3", "[fd00::3]"), member("p4", "10.0.0.4", registry=False)]
    made.ring = Members(*members, member("p5", "10.0.0.5", alive=False))  # type: ignore[assignment]
    made.consul = None
    if services is not None:
        made.consul = Consul(Client(services), None, Catalog(()), None)  # type: ignore[arg-type]
    return await preheat_targets.find(made, count)


@pytest.mark.parametrize("services", [None, (), ConsulError("away")])
async def test_without_a_catalog_the_port_is_this_nodes(services: Any) -> None:
    assert await targets(services) == [
        Target("me", "n1", None),
        Target("p2", "10.0.0.2", ("10.0.0.2", 9090)),
        Target("p4", "10.0.0.4", ("10.0.0.4", 9090)),
        Target("p3", "fd00::3", ("fd00::3", 9090)),
    ]
    assert [target.id for target in await targets(services, 2)] == ["me", "p2"]


async def test_the_catalog_has_the_ports_by_peer_id_or_address() -> None:
    found = await targets(
        (service("10.9.9.9", 19090, "p2"), service("fd00::3", 29090), service("10.0.0.4", 39090, "p2"), service("", 1))
    )
    ports = {target.id: target.metrics for target in found}
    assert ports == {"me": None, "p2": ("10.9.9.9", 19090), "p3": ("fd00::3", 29090), "p4": ("10.0.0.4", 9090)}


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
GOING_ON = {**NodePreheat((RuntimePull("docker", State.PULLING),), State.PULLING).to_json(), "done": False}
DONE = {**NodePreheat((RuntimePull("docker", State.DONE, 1.5, 99),), State.DONE).to_json(), "done": True}


@asynccontextmanager
async def peer(*pieces: bytes, hang: bool = False) -> AsyncIterator[tuple[str, int]]:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(1 << 16)
            try:
                for piece in pieces:
                    await stream.send_all(piece)
            except trio.BrokenResourceError:
                return
            if hang:
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host=HERE))
        yield HERE, listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def asked(metrics: tuple[str, int]) -> list[NodePreheat]:
    found: list[NodePreheat] = []
    async with cluster_preheat.bounded_client.client() as client:
        with trio.fail_after(60):
            await peer_preheat.ask(client, metrics, APP, 60, {}, found.append)
    return found


async def test_a_peer_that_is_right() -> None:
    async with peer(HEAD, line(GOING_ON), b"\n", line(DONE), b"more", hang=True) as metrics:
        found = await asked(metrics)
    assert [state.state for state in found] == [State.PULLING, State.DONE]
    assert found[-1].pulls == (RuntimePull("docker", State.DONE, 1.5, 99),)


NOT_FOUND = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"
REFUSED = b'HTTP/1.1 403 No\r\nConnection: close\r\n\r\n{"error": "no\\nt"}'


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([NOT_FOUND], "an older version, without preheat"),
        ([REFUSED], "no t"),
        ([b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\n\xff\xff\xff"], "status 500"),
        ([b"SSH-2.0\r\n"], ""),
        ([HEAD], "ended before the pull"),
        ([HEAD, line(GOING_ON)], "ended before the pull"),
        ([HEAD, b"junk\n"], "no report"),
        ([HEAD, b"[]\n"], "no report"),
        ([HEAD, b"[" * 60_000 + b"\n"], "no report"),
        ([HEAD, b"{}\n"], "no state"),
        ([HEAD, b"x" * 70_000], "more than 65536 bytes"),
        ([HEAD, line({**GOING_ON, "done": True})], "no result"),
        ([HEAD, line({**GOING_ON, "junk": "x" * 60_000}) * 300], "has no end"),
    ],
)
async def test_a_peer_that_is_not_has_a_reason(pieces: list[bytes], reason: str) -> None:
    async with peer(*pieces) as metrics:
        last = (await asked(metrics))[-1]
    assert last.state is State.FAILED
    assert reason in (last.reason or "")
    assert "\n" not in (last.reason or "")
    assert all(pull.state is State.FAILED for pull in last.pulls)


async def test_a_peer_that_hangs_or_is_away_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_preheat, "SILENCE", 0.5)
    async with peer(HEAD, line(GOING_ON), hang=True) as metrics:
        last = (await asked(metrics))[-1]
        assert "sent nothing for 0.5 s: it hangs" in (last.reason or "")
    last = (await asked(metrics))[-1]
    assert "peers must reach its --metrics-addr" in (last.reason or "")


BAD_FIELDS: list[tuple[str, Any]] = [
    ("state", "x"), ("state", None), ("seconds", "nan"), ("seconds", -1), ("seconds", 10**400), ("bytes", -1),
    ("bytes", 1.5), ("bytes", True), ("bytes", 1 << 60), ("runtime", 7), ("reason", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_bad_field_is_refused(name: str, value: object) -> None:
    pull = {**RuntimePull("docker", State.DONE).to_json(), name: value}
    with pytest.raises(BadLine):
        NodePreheat.parse({**DONE, "runtimes": [pull]})


def test_too_many_runtimes_and_long_texts() -> None:
    with pytest.raises(BadLine):
        NodePreheat.parse({**DONE, "runtimes": [RuntimePull("x", State.DONE).to_json()] * 17})
    assert len(NodePreheat.parse({**DONE, "reason": "x\n" * 9000}).reason or "") == 500


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*DONE, *RuntimePull("", State.DONE).to_json()]), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_a_line_is_a_state_or_is_refused(document: Any) -> None:
    try:
        NodePreheat.parse(document)
    except BadLine:
        pass


def cluster(made: Node, monkeypatch: pytest.MonkeyPatch, *metrics: tuple[str, int]) -> None:
    async def find(_: Node, count: int | None) -> list[Target]:
        others = [Target(f"p{number}", f"n{number}", each) for number, each in enumerate(metrics, 2)]
        return [Target("me", "n1", None), *others][:count]

    monkeypatch.setattr(preheat_targets, "find", find)


async def test_each_node_ends_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready(Runtime())
    async with peer(HEAD, line(DONE)) as good, peer(HEAD, b"junk\n") as bad, peer(HEAD, hang=True) as hung:
        cluster(made, monkeypatch, good, bad, hung)
        async with lines(made, f"{CLUSTER}&within=1") as found:
            assert [document["done"] for document in found] == [False] * (len(found) - 1) + [True]
            assert found[-1]["asked"] == 4
            states = last_states(found)
    assert states["n1"] == states["n2"] == ("done", None)
    assert states["n3"][0] == "failed"
    assert states["n4"] == ("failed", "the preheat ended before")


async def test_the_password_is_proven_to_each_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[str, int], Mapping[str, str]]] = []

    async def note(
        client: object, metrics: tuple[str, int], image: str, within: float, headers: Mapping[str, str],
        changed: Callable[[NodePreheat], None],
    ) -> None:  # fmt: skip
        seen.append((metrics, headers))
        changed(NodePreheat(state=State.DONE))

    (tmp_path / "users").write_text("spegel:secret\n")
    made = ready(Runtime())
    made.credentials = Credentials(tmp_path / "users")
    cluster(made, monkeypatch, ("10.0.0.2", 1), ("10.0.0.3", 1))
    monkeypatch.setattr(peer_preheat, "ask", note)
    async with lines(made, CLUSTER) as found:
        assert {state for state, _ in last_states(found).values()} == {"done"}
    proofs = {metrics[0]: headers[preheat_access.HEADER] for metrics, headers in seen}
    assert len(set(proofs.values())) == 2


async def test_ten_thousand_nodes_are_lines_of_a_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = most = 0

    async def fails(*given: Any) -> None:
        nonlocal at_once, most
        at_once, most = at_once + 1, max(most, at_once + 1)
        await trio.sleep(0)
        at_once -= 1
        given[-1](NodePreheat.failed("x" * 900))

    made = ready(Runtime())
    cluster(made, monkeypatch, *(("10.0.0.2", port) for port in range(10_000)))
    monkeypatch.setattr(peer_preheat, "ask", fails)
    assert made.preheat is not None
    whole = cluster_preheat.ClusterPreheat(made, own_preheat.OwnPreheats(made.preheat, made.store))
    found = await preheat_targets.find(made, None)
    report = ClusterReport(APP, [(target.id, target.name) for target in found])
    first = report.documents()
    await whole.run(Reference.parse(APP), found, 60, report)
    last = report.documents()
    for documents in (first, last):
        assert len(last_states(documents)) == 10_001
        assert max(len(line(document)) for document in documents) < 1 << 20
    assert most == cluster_preheat.MOST_PEERS
    assert [document["done"] for document in last] == [False] * (len(last) - 1) + [True]

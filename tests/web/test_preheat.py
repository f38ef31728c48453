"""Preheats of this node and of the cluster: who may ask, what is refused, and what becomes of each node's answer."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.typing import HTTPScope
from hypothesis import given
from hypothesis import strategies as st
from quart import Response
from quart_trio import QuartTrio
from web.test_node import Catalog, Ring, node

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.media import OCI_CONFIG, OCI_MANIFEST
from spegel_consul.oci.reference import Reference
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.member_view import MemberView
from spegel_consul.runtimes.pulls import CantPull, Received
from spegel_consul.web import report_stream
from spegel_consul.web.access import preheat_access
from spegel_consul.web.node_views import Consul, Node, PreheatRules
from spegel_consul.web.preheat import cluster_preheat, own_preheat, peer_preheat, preheat_targets
from spegel_consul.web.preheat.preheat_report import BadLine, ClusterReport, NodePreheat, RuntimePull, State
from spegel_consul.web.preheat.preheat_targets import Target
from spegel_consul.web.web_app import build_app

APP = "docker.io/library/app:v1"
OWN = f"/api/preheat/own?image={APP}"
CLUSTER = f"/api/preheat?image={APP}"
HERE = "127.0.0.1"
MEMBER = "10.0.0.2"


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


# This node


async def test_the_runtimes_pull_one_after_the_other() -> None:
    first, second = Runtime("docker"), Runtime("containerd default")
    async with lines(ready(first, second)) as found:
        assert first.pulled == second.pulled == [APP]
        assert found[-1]["done"] is True
        assert found[-1]["state"] == "done"
        assert [(each["runtime"], each["state"], each["bytes"]) for each in found[-1]["runtimes"]] == [
            ("docker", "done", 7),
            ("containerd default", "done", 7),
        ]


@pytest.mark.parametrize(
    ("failures", "state", "reason", "missing"),
    [
        ([None, CantPull("old", left_out=True)], "done", None, False),
        ([CantPull("gone", missing=True)], "failed", "gone", True),
        ([CantPull("gone", missing=True), CantPull("disk is full")], "failed", "gone", False),
        ([None, CantPull("disk is full")], "failed", "disk is full", False),
        ([CantPull("old", left_out=True)], "failed", "old", False),
    ],
)
async def test_the_verdict_on_a_node(
    failures: list[CantPull | None], state: str, reason: str | None, missing: bool
) -> None:
    runtimes = [Runtime(str(number), failure) for number, failure in enumerate(failures)]
    async with lines(ready(*runtimes)) as found:
        last = found[-1]
        assert (last["state"], last["reason"], last["missing"], last["done"]) == (state, reason, missing, True)


async def test_an_image_that_only_this_node_has_is_there() -> None:
    config = {"mediaType": OCI_CONFIG, "digest": Digest.of(b"{}"), "size": 2}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}).encode()
    for runtimes, state in (([Runtime()], "done"), ([Runtime("a"), Runtime("b")], "failed")):
        made = ready(*runtimes)
        made.store.add_content(b"{}")  # type: ignore[attr-defined]
        made.store.add_image(APP, manifest)  # type: ignore[attr-defined]
        for runtime in runtimes:
            runtime.failure = CantPull("gone", missing=True)
        async with lines(made) as found:
            assert found[-1]["state"] == state
            [*_, last] = found[-1]["runtimes"]
            assert (last["state"], last["bytes"]) == ((state, len(manifest) + 2) if state == "done" else (state, 7))


async def test_a_defect_and_an_unknown_runtime_are_reasons() -> None:
    async with lines(ready(Runtime(failure=ZeroDivisionError("cannot be")))) as found:
        assert (found[-1]["state"], found[-1]["reason"]) == ("failed", "ZeroDivisionError: cannot be")
    made = ready()
    made.preheat = PreheatRules(Runtimes(CantPull("no containerd")), lambda _: True, catalog_only=False)
    async with lines(made) as found:
        assert (found[-1]["state"], found[-1]["reason"]) == ("failed", "no containerd")


async def test_a_preheat_ends_in_time() -> None:
    made, runtime = ready(), Runtime()
    made.preheat = PreheatRules(Runtimes([runtime]), lambda _: True, catalog_only=False)
    async with lines(made, f"{OWN}&within=2") as found:
        assert (found[-1]["state"], found[-1]["reason"]) == ("failed", "given up after 2 s")
        assert found[-1]["runtimes"][0]["state"] == "failed"
        assert len(found) >= 3, "a line each second"
        assert runtime.cancelled.is_set()


async def test_a_preheat_is_cancelled_when_its_asker_goes_away() -> None:
    runtime, report = Runtime(), own_preheat.OwnReport()
    own = own_preheat.OwnPreheats(PreheatRules(Runtimes([runtime]), lambda _: True, False), node().store)
    reference = Reference.parse(APP)
    async with trio.open_nursery() as nursery:
        stream = report_stream.follow(lambda: own.run(reference, 60, report), report, nursery)
        with trio.fail_after(20):
            await anext(stream)
            await runtime.began.wait()
            with pytest.raises(own_preheat.Busy):
                own.check(reference)
            await stream.aclose()  # type: ignore[attr-defined]
            await runtime.cancelled.wait()
    own.check(reference)


async def test_one_of_an_image_and_two_in_all() -> None:
    runtime = Runtime()
    own = own_preheat.OwnPreheats(PreheatRules(Runtimes([runtime]), lambda _: True, False), node().store)
    names = [Reference.parse(f"app:v{number}") for number in range(3)]
    async with trio.open_nursery() as nursery:
        for name in names[:2]:
            nursery.start_soon(own.run, name, 60, own_preheat.OwnReport())
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(own_preheat.Busy, match="for another preheat"):
            own.check(names[0])
        with pytest.raises(own_preheat.Busy, match="2 other preheats"):
            own.check(names[2])
        late = own_preheat.OwnReport()
        await own.run(names[2], 60, late)
        assert late.now.state is State.FAILED
        assert "2 other preheats" in (late.now.reason or "")
        runtime.go.set()
    own.check(names[2])


@pytest.mark.parametrize("path", ["/api/preheat", "/api/preheat/own"])
@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("", 400, "name an image"),
        ("?image=", 400, "name an image"),
        ("?image=app:v%201", 400, "tag"),
        ("?image=App%20X", 400, "not valid"),
        ("?image=../../etc", 400, "not valid"),
        ("?image=sha256:" + "0" * 64, 400, "a digest alone"),
        ("?image=app@sha256:12", 400, "digest"),
        ("?image=" + "a" * 5000, 400, "5000 characters"),
        ("?image=app:v1&within=0", 400, "within"),
        ("?image=app:v1&within=nan", 400, "within"),
        ("?image=app:v1&within=1e9", 400, "within"),
        ("?image=quay.io/team/app:v1", 403, "--mirrored-registries"),
        ("?image=app:secret", 403, "--registry-filters"),
    ],
)
async def test_bad_input_is_one_line(path: str, query: str, status: int, reason: str) -> None:
    found, message = await refused(ready(), path + query)
    assert found == status
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("count", ["0", "-1", "x", "1e3", "9999999", ""])
async def test_a_bad_number_of_nodes(count: str) -> None:
    assert await refused(ready(), f"{CLUSTER}&nodes={count}") == (
        400,
        "nodes must be a number greater than zero, or all",
    )


async def test_a_preheat_is_no_get() -> None:
    response = await build_app(ready()).test_client().get("/api/preheat", headers={"host": "10.0.0.1"})
    assert response.status_code == 405


# The senders


async def test_a_node_that_is_not_told_to_takes_no_part() -> None:
    for path in (OWN, CLUSTER):
        assert await refused(node(), path) == (403, preheat_access.OFF)


@pytest.mark.parametrize("path", [OWN, CLUSTER])
@pytest.mark.parametrize(
    ("client", "headers"),
    [
        (HERE, {"origin": "http://evil.example"}),
        (HERE, {"sec-fetch-site": "cross-site"}),
        (MEMBER, {"origin": "http://evil.example"}),
        (HERE, {"x-forwarded-for": "10.0.0.9"}),
        (MEMBER, {"via": "1.1 proxy"}),
        ("10.0.0.9", {}),
        ("10.0.0.3", {}),
    ],
)
async def test_strangers_are_refused(path: str, client: str, headers: dict[str, str]) -> None:
    runtime = Runtime()
    status, _ = await refused(ready(runtime), path, client=client, headers=headers)
    assert status == 403
    assert not runtime.began.is_set()


async def test_a_peer_has_this_node_pull_and_does_not_begin_a_preheat_of_the_cluster() -> None:
    for address in (MEMBER, f"::ffff:{MEMBER}", "10.0.0.1"):
        async with lines(ready(), client=address) as found:
            assert found[-1]["state"] == "done"
    status, reason = await refused(ready(), CLUSTER, client=MEMBER)
    assert status == 403
    assert "on the machine of the sidecar" in reason


async def test_the_catalog_counts_and_alone_with_the_policy() -> None:
    service = HealthyService("spegel:n9", "spegel", "n9", "10.0.0.9", 5000, meta={"also": "fd00::9"})
    made = ready()
    made.consul = Consul(None, None, Catalog((service,)), None)  # type: ignore[arg-type]
    assert made.preheat is not None
    for catalog_only in (False, True):
        made.preheat = PreheatRules(made.preheat.runtimes, made.preheat.accepts, catalog_only)
        for address in ("10.0.0.9", "fd00::9"):
            async with lines(made, client=address) as found:
                assert found[-1]["state"] == "done"
    assert await refused(made, OWN, client=MEMBER) == (
        403,
        f"{MEMBER} is not the address of a node in Consul's catalog",
    )


async def test_a_password_proves_a_peer_and_its_address_does_not(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("spegel:secret\n")
    (tmp_path / "others").write_text("spegel:guessed\n")
    made, other = ready(), Credentials(tmp_path / "others")
    made.credentials = Credentials(tmp_path / "users")
    status, reason = await refused(made, OWN, client=MEMBER)
    assert (status, "does not prove" in reason) == (403, True)
    good = preheat_access.proof(made.credentials, "me", APP)
    assert "secret" not in str(good)
    async with lines(made, client="10.0.0.9", headers=good) as found:
        assert found[-1]["state"] == "done"
    for wrong, reason in (
        (preheat_access.proof(other, "me", APP), "another password"),
        (preheat_access.proof(made.credentials, "peer2", APP), "another password"),
        (preheat_access.proof(made.credentials, "me", "docker.io/library/other:v1"), "another password"),
        ({preheat_access.HEADER: "x" * 9000}, "does not prove"),
        ({preheat_access.HEADER: "1 " + "0" * 64}, "another password"),
    ):
        status, message = await refused(made, OWN, client=MEMBER, headers=wrong)
        assert status == 403
        assert reason in message


async def test_a_proof_is_of_one_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users").write_text("spegel:secret\n")
    made = ready()
    made.credentials = Credentials(tmp_path / "users")
    good = preheat_access.proof(made.credentials, "me", APP)
    now = time.time()
    monkeypatch.setattr(preheat_access.time, "time", lambda: now + 100)
    status, reason = await refused(made, OWN, client=MEMBER, headers=good)
    assert status == 403
    assert "the clocks" in reason


# The nodes


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


def service(address: str, port: int, peer_id: str = "") -> HealthyService:
    return HealthyService(address, "spegel-metrics", "n", address, port, meta={"peer_id": peer_id} if peer_id else {})


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


# A peer's answers

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
GOING_ON = {**NodePreheat((RuntimePull("docker", State.PULLING),), State.PULLING).to_json(), "done": False}
DONE = {**NodePreheat((RuntimePull("docker", State.DONE, 1.5, 99),), State.DONE).to_json(), "done": True}


def line(document: object) -> bytes:
    return json.dumps(document).encode() + b"\n"


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


# The cluster


def cluster(made: Node, monkeypatch: pytest.MonkeyPatch, *metrics: tuple[str, int]) -> None:
    async def find(_: Node, count: int | None) -> list[Target]:
        others = [Target(f"p{number}", f"n{number}", each) for number, each in enumerate(metrics, 2)]
        return [Target("me", "n1", None), *others][:count]

    monkeypatch.setattr(preheat_targets, "find", find)


def last_states(found: list[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    return {each["node"]: (each["state"], each["reason"]) for document in found for each in document["nodes"]}


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


def test_a_report_that_fails_ends_all_nodes() -> None:
    report = ClusterReport(APP, [("a", "n1"), ("b", "n2")])
    report.set("a", NodePreheat(state=State.DONE))
    report.failed("cannot be")
    [document] = report.documents()
    assert (document["problem"], document["done"]) == ("cannot be", True)
    assert last_states([document]) == {"n1": ("done", None), "n2": ("failed", "the preheat ended before")}

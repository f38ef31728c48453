"""What a node makes of the ring and the catalog, where they tell of the cluster in different words."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import pytest
import trio
from click.testing import CliRunner
from fakes.memory_store import MemoryStore

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.peers import peers
from spegel_consul.commands.status import _lines
from spegel_consul.consul.api.client import ConsulClient, HealthyService
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.consul.catalog.service_definitions import spegel_services
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.http.peer_tls import EXPIRED, Encryption
from spegel_consul.join.sources.nomad_lock import NomadVarBootstrap
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.errors import Busy
from spegel_consul.peers import PeerInfo, Provider
from spegel_consul.places import NOWHERE, Here, Place
from spegel_consul.registry.mirror.providers.nearness import CrossZone, Nearness
from spegel_consul.registry.mirror.providers.penalties import Penalties
from spegel_consul.registry.mirror.trace import Traces
from spegel_consul.registry.uploads import Upload, Uploads
from spegel_consul.ring.member_view import MemberView
from spegel_consul.ring.members.table import FULL
from spegel_consul.store.union import UnionStore
from spegel_consul.web import pages
from spegel_consul.web.cluster import node_summary
from spegel_consul.web.cluster.node_summary import NodeSummary
from spegel_consul.web.metric_readings import connect
from spegel_consul.web.node_views import Consul, Node
from spegel_consul.web.web_app import build_app
from spegel_consul.zerocopy.encrypted.kernel_tls import KERNEL
from tests.join.fakenomad import FakeNomad
from tests.registry.image import LAYER, MANIFEST


@dataclass
class Ring:
    """This node at 10.0.0.1, one alive at 10.0.0.2, one dead at 10.0.0.3."""

    me: PeerInfo = field(default_factory=lambda: PeerInfo("me", ("/ip4/10.0.0.1/tcp/5001",)))
    at: float = 0.5
    records: int = 0
    unannounced: int = 0
    warning: str | None = None

    def view(self) -> tuple[MemberView, ...]:
        return tuple(
            MemberView(f"peer{n}", (f"/ip4/10.0.0.{n}/tcp/5001",), f"10.0.0.{n}:5000", n == 2, 0, 0.01, 1.0, 3, n / 10)
            for n in (2, 3)
        )

    def is_dead(self, peer_id: str) -> bool:
        return peer_id == "peer3"

    def members(self) -> tuple[PeerInfo, ...]:
        return tuple(PeerInfo(member.id, member.routers) for member in self.view() if member.alive)


@dataclass
class Catalog:
    members: tuple[HealthyService, ...]
    problem: str | None = None


@dataclass
class Client:
    answered_at: float | None = None
    renewals: dict[str, int] = field(default_factory=dict)

    async def health_service(self, name: str, **_: object) -> tuple[int, tuple[HealthyService, ...]]:
        return 1, ()


def node(*addresses: str) -> Node:
    made = Node(
        name="n1",
        registry=("10.0.0.1", 5000),
        metrics_address=("10.0.0.1", 9090),
        store_kind="layout",
        store=MemoryStore(),
        ring=Ring(),  # type: ignore[arg-type]
        traces=Traces(),
        penalties=Penalties(),
        metrics=Metrics(),
    )
    services = tuple(
        HealthyService(f"_nomad-task-{n}-router", "spegel-router", f"n{address[-1]}", address, 5001)
        for n, address in enumerate(addresses)
    )
    made.consul = Consul(Client(), None, Catalog(services), None)  # type: ignore[arg-type]
    return made


async def test_routers_that_nomad_registered_are_known_by_their_addresses() -> None:
    made = node("10.0.0.1", "10.0.0.2")
    assert made.cluster_members().missing == []
    assert made.warnings() == ()
    status = made.status()
    assert (status["ring"]["split"], status["ring"]["coverage"]) == (False, 1.0)
    assert made.cluster_members().names == {"me": "n1", "peer2": "n2"}
    assert made.cluster_members().registries()["10.0.0.2:5000"] == "n2"
    assert {peer["node"]: peer["state"] for peer in made.peers()} == {"n1": "self", "n2": "alive", None: "dead"}


async def test_a_node_has_the_name_that_it_was_given_whatever_its_port_is() -> None:
    made = node()
    registered = [
        spegel_services(
            node=f"n{number}", address=f"10.0.0.{number}", peer_id=f"peer{number}", router_addr="", version="1",
            registry_port=port, router_port=5001, metrics_port=9090,
        ).always[1]
        for number, port in ((2, 5050), (3, 5000))
    ]  # fmt: skip
    found = tuple(
        HealthyService(each.id, each.name, "agent", each.address, each.port, meta=each.meta) for each in registered
    )
    made.consul = Consul(Client(), None, Catalog(found), None)  # type: ignore[arg-type]
    assert made.cluster_members().names == {"me": "n1", "peer2": "n2", "peer3": "n3"}


async def test_those_that_are_not_in_the_ring_are_missing_still() -> None:
    made = node("10.0.0.1", "10.0.0.3", "10.0.0.9")
    assert made.cluster_members().missing == ["n3", "n9"]
    assert {peer["node"]: peer["state"] for peer in made.peers()} == {
        "n1": "self",
        None: "alive",
        "n3": "dead",
        "n9": "missing",
    }


async def test_a_full_table_is_a_warning_and_a_metric() -> None:
    made = node()
    connect(made)
    assert made.metrics.registry.get_sample_value("spegel_ring_full") == 0
    made.ring.warning = FULL  # type: ignore[misc]
    assert FULL in made.warnings()
    assert FULL in made.status()["warnings"]
    assert made.metrics.registry.get_sample_value("spegel_ring_full") == 1
    made.ring.warning = "another problem"  # type: ignore[misc]
    assert made.metrics.registry.get_sample_value("spegel_ring_full") == 0


async def test_a_consul_that_never_answered_is_away_since_the_start(autojump_clock: trio.abc.Clock) -> None:
    made = node()
    connect(made)
    staleness = partial(made.metrics.registry.get_sample_value, "spegel_consul_staleness_seconds")
    await trio.sleep(300)
    assert staleness() == pytest.approx(300)
    made.consul.client.answered_at = trio.current_time()  # type: ignore[union-attr,misc]
    await trio.sleep(5)
    assert staleness() == pytest.approx(5)


async def test_a_certificate_that_is_missing_or_not_renewed_is_a_metric() -> None:
    made = node()
    connect(made)
    problem = partial(made.metrics.registry.get_sample_value, "spegel_certificate_problem")
    assert problem() is None, "without TLS"
    made.tls = ConsulTls(ConsulClient(ConsulSettings()), Encryption.PREFER, None)
    assert problem() == 1
    for text, value in ((None, 0), ("the certificate for peers is not renewed: no right", 1)):
        made.tls = SimpleNamespace(problem=text, expires=None)  # type: ignore[assignment]
        assert problem() == value


async def test_who_leads_by_the_lock_on_a_nomad_variable(nursery: trio.Nursery) -> None:
    nomad, found = FakeNomad(), {}
    for name in ("n1", "n2"):
        record = LeaderRecord(name, (f"/ip4/10.0.0.1/tcp/5001/p2p/{name}",), node=name)
        election = NomadVarBootstrap(nomad.client(name), "nomad/jobs/spegel/leader", record)
        await nursery.start(election.run)
        found[name] = made = node()
        made.consul, made.nomad_candidate = None, election.candidate
        connect(made)
        with trio.fail_after(30):
            while (leader := made.leader()) is None or leader["node"] != "n1" or leader["state"] == "candidate":
                await trio.sleep(0.1)
    assert [each.leader()["me"] for each in found.values()] == [True, False]
    assert [each.metrics.registry.get_sample_value("spegel_leader") for each in found.values()] == [1, 0]
    nomad.links["n2"] = 403
    nomad.write("nomad/jobs/spegel/leader", {"peer_id": "n1", "addrs": "/ip4/10.0.0.1/tcp/5001/p2p/n1", "node": "n1"})
    with trio.fail_after(30):
        while not found["n2"].warnings():
            await trio.sleep(0.1)
    assert "403" in found["n2"].warnings()[0]
    assert found["n1"].warnings() == ()
    assert node().leader() is None


async def test_which_peers_are_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = node("10.0.0.1", "10.0.0.2", "10.0.0.9")

    def encrypted() -> dict[str, object]:
        return {str(peer["state"]): peer["encrypted"] for peer in made.peers()}

    assert encrypted() == {"self": None, "alive": False, "dead": False, "missing": None}
    assert made.status()["peer_tls"] is None
    tls = ConsulTls(ConsulClient(ConsulSettings()), Encryption.PREFER, None)
    made.tls = tls
    assert encrypted() == {"self": None, "alive": None, "dead": None, "missing": None}
    tls.links.note("10.0.0.2", True)
    tls.links.note("10.0.0.3", False)
    assert encrypted() == {"self": None, "alive": True, "dead": False, "missing": None}
    problem = "no certificate for peers: Consul sent no other"
    expected = {"mode": "prefer", "expires": None, "problem": problem, "kernel": KERNEL.encrypted}
    assert made.status()["peer_tls"] == expected
    assert problem in made.warnings()
    tls.links.refused("10.0.0.2", EXPIRED)
    assert f"no TLS with 10.0.0.2: {EXPIRED.problem}; {EXPIRED.fix}" in made.warnings()
    assert encrypted()["alive"] is None
    monkeypatch.setattr(KERNEL, "encrypted", None)
    assert ("encryption", "prefer") in _lines(made.status())
    monkeypatch.setattr(KERNEL, "encrypted", True)
    assert ("encryption", "prefer, files by the kernel") in _lines(made.status())
    assert made.status()["node"]["registry"] == "http://10.0.0.1:5000"


@pytest.mark.parametrize(
    ("encryption", "links", "column"),
    [
        (None, {}, []),
        (Encryption.PREFER, {}, ["–", "–", "–", "–"]),
        (Encryption.PREFER, {"10.0.0.2": False}, ["–", "no", "–", "–"]),
        (Encryption.PREFER, {"10.0.0.2": True, "10.0.0.3": False}, ["–", "yes", "–", "no"]),
    ],
)
async def test_the_command_peers_shows_who_is_encrypted(
    encryption: Encryption | None, links: dict[str, bool], column: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = node("10.0.0.1", "10.0.0.2", "10.0.0.9")
    if encryption is not None:
        made.tls = ConsulTls(ConsulClient(ConsulSettings()), encryption, None)
        for host, encrypted in links.items():
            made.tls.links.note(host, encrypted)
    documents = {"/api/peers": made.peers(), "/api/status": made.status()}
    monkeypatch.setattr(sidecar_client, "get", lambda node, path: documents[path])
    monkeypatch.setenv("COLUMNS", "200")
    lines = CliRunner().invoke(peers).output.splitlines()
    assert ("encrypted" in lines[0]) is bool(column)
    if column:
        at = lines[0].index("encrypted")
        assert [line[at:].split()[0] for line in lines[1:]] == column


async def test_where_nodes_are_and_what_crossed() -> None:
    made = node()
    assert (made.status()["node"]["place"], made.status()["mirror"]["bytes_crossed"]) == (None, 0)
    near = made.nearness = Nearness(Here(Place("dc1", "a")), CrossZone.FALLBACK, made.metrics.received_bytes)
    for place, count in ((Place("dc1", "a"), 3), (Place("dc1", "b"), 5), (Place("dc2"), 7), (NOWHERE, 11)):
        near.took(Provider("peer", ("10.0.0.9", 5000), place=place), count)
    assert made.status()["node"]["place"] == "dc1/a"
    mirror = made.status()["mirror"]
    assert mirror["bytes_by_place"] == {"rack": 0, "zone": 3, "datacenter": 5, "other": 7, "unknown": 11}
    assert mirror["bytes_crossed"] == 12
    assert {str(peer["state"]): peer["place"] for peer in made.peers()} == {
        "self": "dc1/a",
        "alive": None,
        "dead": None,
    }


async def test_a_clock_that_is_set_back_does_not_change_the_uptime(monkeypatch: pytest.MonkeyPatch) -> None:
    made = node("10.0.0.1")
    made.started -= 7200
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 7200 <= made.status()["node"]["uptime"] < 7300
    assert 7200 <= NodeSummary.parse(node_summary.of(made)).uptime < 7300
    response = await build_app(made).test_client().get("/debug/web/")
    assert b"in 2 h since the start" in await response.get_data()


@pytest.mark.parametrize("namespaces", [1, 2])
async def test_content_that_images_share_counts_once(namespaces: int) -> None:
    made, stores = node("10.0.0.1"), [MemoryStore() for _ in range(namespaces)]
    made.store = UnionStore(stores) if namespaces > 1 else stores[0]
    sizes = {}
    for number, store in enumerate((stores[0], stores[-1])):
        for content in (LAYER, b"{}"):
            sizes[store.add_content(content)] = len(content)
        manifest = json.dumps(json.loads(MANIFEST) | {"annotations": {"number": str(number)}}).encode()
        for tag in ("v1", "latest"):
            sizes[store.add_image(f"docker.io/library/app{number}:{tag}", manifest)] = len(manifest)
        store.add_content(b"of no image")
    found = made.status()["content"]
    assert (found["images"], found["bytes"]) == (4, sum(sizes.values()))
    assert node_summary.of(made)["image_bytes"] == found["bytes"]


@pytest.mark.parametrize("uptime", [-1, -0.5, -1e30])
def test_a_node_of_an_older_version_may_say_that_it_started_in_the_future(uptime: float) -> None:
    assert NodeSummary.parse({"id": "peer2", "uptime": uptime}).uptime == 0


async def test_what_is_told_of_the_uploads() -> None:
    made = node("10.0.0.1")
    assert made.status()["uploads"] == {"streams": 0, "most": None, "refused": 0, "rate": None}
    assert "bodies to neighbours" not in shown(made)
    made.uploads = Uploads(1, rate=3 << 20)
    connect(made)
    made.metrics.busy_peers.inc()
    with made.uploads.one(Upload.BODY):
        with pytest.raises(Busy):
            made.uploads.enter(Upload.BODY)
        found = made.status()
        assert found["uploads"] == {"streams": 1, "most": 1, "refused": 1, "rate": 3 << 20}
        assert found["mirror"]["busy"] == 1
        assert "1 of 1 bodies to neighbours now, at most 3.0 MiB/s, 1 refused as busy" in shown(made)
        assert ("uploads", "1 of 1 bodies to peers, 1 refused as busy") in _lines(found)
        values = {name: made.metrics.registry.get_sample_value(name) for name in ("spegel_uploads", REFUSED, BUSY)}
    assert values == {"spegel_uploads": 1.0, REFUSED: 1.0, BUSY: 1.0}


REFUSED, BUSY = "spegel_uploads_refused_total", "spegel_busy_peers_total"


def shown(made: Node) -> str:
    """What the page says of the uploads."""
    page = pages.environment().get_template("parts.html").module
    uploads: str = page.uploads(made.status()["uploads"])  # type: ignore[attr-defined]
    return uploads.strip()

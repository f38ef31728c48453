# Two datacenters with two nodes each: the first one of each runs the Consul server, and the servers are joined over the
# WAN, which is one line between two bridges.  n1 is told to join routers of both, as docs/zones.md says.  There is no
# upstream, so what a runtime gets comes from a node.

"""Two datacenters whose Consul is joined over a WAN, and one ring of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from lab import thorough
from lab.cluster import Cluster, Node
from lab.consul import ConsulOptions, await_all, start_all
from lab.image import MIB, Image, MakeImage
from lab.network import address
from lab.process import until
from lab.prometheus import Prometheus
from lab.sidecar import METRICS_PORT

from tests.real.consul.sidecars import last_state, log_events

from .test_pull import members
from .test_ring import found

pytestmark = pytest.mark.real

WAN = 100  # Mbit/s
LAYERS = [6 * MIB, 3 * MIB]
TALK = MIB
"""Bytes over the WAN for all but content."""
KEY = "spegel/leader"
OUTAGES = ["short", "long"] if thorough.ALL else ["short"]
DOCS = Path(__file__).parents[2] / "docs"


class Datacenters:
    """The nodes of both, and who leads in each."""

    def __init__(self, lab: Cluster) -> None:
        self.lab = lab
        self.dc1, self.dc2 = lab.nodes[:2], lab.nodes[2:]
        options = [
            ConsulOptions(first=0, datacenter="dc1"),
            ConsulOptions(first=2, datacenter="dc2", wan=(address(0),)),
        ]
        agents = [[node.add_consul(o) for node in nodes] for o, nodes in zip(options, self.both, strict=True)]
        for each in agents:
            start_all(each)
        for each in agents:
            await_all(each)
        lab.network.divide([node.port for node in self.dc2], WAN)
        until(self._joined, timeout=30, what="Consul's servers know both datacenters")
        for node in lab:
            self.start(node)
        for node in lab:
            node.sidecar.await_ready()

    @property
    def both(self) -> tuple[list[Node], list[Node]]:
        return self.dc1, self.dc2

    def _joined(self) -> bool:
        return all(set(nodes[0].consul.get("/v1/catalog/datacenters")) == {"dc1", "dc2"} for nodes in self.both)

    def start(self, node: Node) -> None:
        """As docs/zones.md says."""
        node.containerd.mirror(f"http://{node.ip}:5000")
        joins = {}
        if node is self.dc1[1]:
            routers = ",".join(f"{each.ip}:5001" for each in self.lab)
            joins = {"bootstrap_kind": "static,consul", "static_bootstrap_peers": routers}
        node.start_sidecar(wait=False, skip_preflight=True, mirror_resolve_timeout="1s", **joins)

    def held(self, nodes: list[Node]) -> tuple[str, str] | None:
        """The session that has the lock in the datacenter of ``nodes``, and the node that it is of."""
        entry = nodes[0].consul.kv_entry(KEY)
        if entry is None or "Session" not in entry:
            return None
        value = json.loads(nodes[0].consul.kv_get(KEY) or b"{}")
        return (entry["Session"], value["node"]) if value.get("session") == entry["Session"] else None

    def leads(self, nodes: list[Node]) -> str | None:
        """The name of the node that leads in the datacenter of ``nodes``, once both agree."""
        held = self.held(nodes)
        states = {node.name: last_state(node) for node in nodes if not node.sidecar.stopped}
        leaders = [name for name, state in states.items() if state.get("state") == "leader"]
        agreed = held is not None and leaders == [held[1]] and {each["leader"] for each in states.values()} == {held[1]}
        return leaders[0] if agreed else None

    def is_whole(self) -> bool:
        """Whether everybody knows everybody."""
        alive = [node for node in self.lab if not node.sidecar.stopped]
        return all(members(node) == len(alive) - 1 for node in alive)

    def is_forgotten(self) -> bool:
        """Whether no node has one of the other datacenter in its table."""
        return not any(
            f"{far.ip}:5000" in node.request("/api/peers", port=METRICS_PORT).body.decode()
            for nodes, others in (self.both, self.both[::-1])
            for node in nodes
            for far in others
        )


@pytest.fixture(scope="module")
def datacenters() -> Iterator[Datacenters]:
    with Cluster(4, consul=False) as lab:
        yield Datacenters(lab)


def received(node: Node, place: str) -> float:
    for line in node.sidecar.metrics().splitlines():
        if line.startswith(f'spegel_received_bytes_total{{place="{place}"}} '):
            return float(line.split()[-1])
    return 0.0


def crossed(datacenters: Datacenters, image: Image, nodes: list[Node]) -> float:
    """Copies of the image's own layers that went over the WAN while ``nodes`` pulled it at the same time."""
    for node in nodes:
        until(lambda node=node: found(node, image.index), timeout=20, what=f"{node} finds the image")
    before = datacenters.lab.network.crossed_bytes()
    with ThreadPoolExecutor(len(nodes)) as pool:
        for pull in [pool.submit(node.containerd.pull_cri, image.name, 30) for node in nodes]:
            pull.result(60)
    assert all(image.amd64.digests <= node.containerd.content() for node in nodes)
    return (datacenters.lab.network.crossed_bytes() - before - TALK) / sum(LAYERS)


def test_one_ring_of_two_datacenters_with_a_leader_in_each(datacenters: Datacenters, image: MakeImage) -> None:
    until(datacenters.is_whole, timeout=30, what="everybody knows everybody")
    for nodes in datacenters.both:
        until(lambda nodes=nodes: datacenters.leads(nodes), timeout=20, what=f"one of {nodes} leads")
        until(
            lambda nodes=nodes: len(nodes[0].consul.instances("spegel-router")) == 2,
            timeout=20,
            what="its catalog has its routers, and no others",
        )

    # only a node of the first datacenter has it
    app = image("docker.io/library/first:v1", LAYERS, 1)
    datacenters.dc1[0].containerd.import_image(app.tar)
    first, second = datacenters.dc2
    assert 0.8 < crossed(datacenters, app, [first]) < 1.3
    assert received(first, "other") >= sum(LAYERS)
    assert crossed(datacenters, app, [second]) <= 0, "its datacenter has it by now"
    assert received(second, "other") < TALK / 16, "no more than the tag's manifest"
    assert received(second, "datacenter") >= sum(LAYERS)

    # the other way round, for two nodes at once
    app = image("docker.io/library/second:v1", LAYERS, 2)
    first.containerd.import_image(app.tar)
    assert 0.8 < crossed(datacenters, app, datacenters.dc1) < 1.3


def test_the_leader_of_one_stops_and_the_other_does_not_notice(datacenters: Datacenters) -> None:
    here = datacenters.held(datacenters.dc1)
    name = datacenters.leads(datacenters.dc2)
    old, new = sorted(datacenters.dc2, key=lambda node: node.name != name)
    assert old.sidecar.stop() == 0
    until(lambda: datacenters.leads(datacenters.dc2) == new.name, timeout=10, what=f"{new} leads")
    until(datacenters.is_whole, timeout=20, what="three are one ring")
    datacenters.start(old)
    old.sidecar.await_ready()
    until(datacenters.is_whole, timeout=20, what="everybody knows everybody again")
    assert datacenters.leads(datacenters.dc2) == new.name
    assert datacenters.held(datacenters.dc1) == here


def test_one_prometheus_counts_the_leader_of_each(datacenters: Datacenters) -> None:
    """With a second entry in the documentation's configuration, as its comment says."""
    configuration = yaml.safe_load((DOCS / "prometheus.yml").read_text())
    found = configuration["scrape_configs"][0]["consul_sd_configs"]
    found.append({**found[0], "datacenter": "dc2"})
    lab = datacenters.lab
    with Prometheus(lab[0].netns, lab.dir / "prometheus", yaml.safe_dump(configuration)) as prometheus:
        prometheus.await_scrapes(4)
        leaders = prometheus.values("sum by (datacenter) (spegel_leader)", by="datacenter")
    assert leaders == {"dc1": 1, "dc2": 1}


@pytest.mark.parametrize("outage", OUTAGES)
def test_the_wan_fails_and_comes_back(datacenters: Datacenters, image: MakeImage, outage: str) -> None:
    leaders = [datacenters.held(nodes) for nodes in datacenters.both]
    assert not datacenters.is_forgotten()
    datacenters.lab.network.cut()
    app = image(f"docker.io/library/{outage}:v1", LAYERS, 3 + OUTAGES.index(outage))
    first, second = datacenters.dc2
    first.containerd.import_image(app.tar)
    assert crossed(datacenters, app, [second]) <= 0
    if outage == "long":
        until(datacenters.is_forgotten, timeout=600, what="each datacenter has forgotten the nodes of the other")
    datacenters.lab.network.mend()
    until(datacenters.is_whole, timeout=100, what="it is one ring again")
    assert [datacenters.held(nodes) for nodes in datacenters.both] == leaders
    for node in datacenters.lab:
        assert "Traceback" not in node.sidecar.log()
        assert not [event for event in log_events(node) if event["event"] == "ring_split"]

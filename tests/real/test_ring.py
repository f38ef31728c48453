# Who is found while sidecars stop and leaders change: three of them with Consul, each with an image that only it has.

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import quote

import pytest
from lab.cluster import Node
from lab.image import MIB, Image
from lab.process import until
from lab.sidecar import METRICS_PORT, REGISTRY_PORT

from tests.real.consul.sidecars import empty_layout, last_state, log_events

from .test_pull import members, metric

pytestmark = pytest.mark.real


def found(asker: Node, key: str) -> set[str]:
    """The names of the nodes at which ``asker`` finds ``key``."""
    answer = asker.request(f"/api/lookup?key={quote(key)}", port=METRICS_PORT)
    assert answer.status == 200, answer.body
    return {provider["node"] for provider in json.loads(answer.body)["providers"]}


def stalled_download(node: Node, image: Image, layer: str) -> socket.socket:
    """A client that takes the beginning of a layer and then nothing more."""
    client = node.netns.connect(node.ip, REGISTRY_PORT)
    path = f"/v2/{image.repository}/blobs/{layer}?ns={image.registry}"
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: {node.ip}\r\n\r\n".encode())
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    return client


class Asker:
    """Looks one node's key up from another, again and again."""

    def __init__(self, asker: Node, owner: Node, key: str) -> None:
        self._asker, self._owner, self._key = asker, owner, key
        self.found = 0
        self.failures: list[str] = []

    def ask_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            names = found(self._asker, self._key)
            if names == {self._owner.name}:
                self.found += 1
            else:
                self.failures.append(f"{self._asker.name} finds {names} instead of {self._owner.name}")
            time.sleep(0.01)


def test_the_leader_stops_and_the_others_restart_their_routers_without_a_failed_lookup(cluster, image) -> None:
    lab = cluster(3, containerd=None)
    images = {node.name: image(f"docker.io/library/of-{node.name}:v1", [20 * MIB], node.index + 1) for node in lab}
    keys = {name: app.amd64.layers[1] for name, app in images.items()}
    for node in lab:
        node.start_sidecar(wait=False, layout_path=images[node.name].layout, on_leader_change="restart")
    for node in lab:
        node.sidecar.await_ready()
    until(
        lambda: all(found(asker, keys[owner.name]) == {owner.name} for asker in lab for owner in lab if asker != owner),
        timeout=30,
        what="everything is found from everywhere",
    )
    until(lambda: {last_state(node)["state"] for node in lab} == {"leader", "follower"}, timeout=20, what="one leads")
    leader = next(node for node in lab if last_state(node)["state"] == "leader")
    others = [node for node in lab if node is not leader]
    askers = [Asker(others[0], others[1], keys[others[1].name]), Asker(others[1], others[0], keys[others[0].name])]
    stop = threading.Event()
    with ThreadPoolExecutor(2) as pool, closing(stalled_download(leader, images[leader.name], keys[leader.name])):
        try:
            running = [pool.submit(asker.ask_until, stop) for asker in askers]
            leader.sidecar.stopped = True
            leader.sidecar.process.signal(signal.SIGTERM)
            until(
                lambda: not any(found(node, keys[leader.name]) for node in others),
                timeout=7,
                what="nobody is told of the node that stops",
            )
            assert leader.sidecar.process.alive, "while it lets the download end"
            until(lambda: any(restarts(node) for node in others), timeout=20, what="a follower has a new router")
            time.sleep(0.5)
        finally:
            stop.set()
        for each in running:
            each.result(30)
    assert [asker.failures for asker in askers] == [[], []]
    assert all(asker.found > 5 for asker in askers)
    assert sorted(last_state(node)["state"] for node in others) == ["follower", "leader"]
    assert leader.sidecar.stop(15) == 0
    for node in lab:
        assert "Traceback" not in node.sidecar.log()


def restarts(node: Node) -> int:
    return sum(event["event"] == "ring_restarted" for event in log_events(node))


def test_two_clusters_with_one_consul_are_two_rings(cluster) -> None:
    lab = cluster(4, containerd=None)
    layout = empty_layout(lab.dir)
    clusters = {"prod/leader": lab.nodes[:2], "staging/leader": lab.nodes[2:]}
    for key, nodes in clusters.items():
        for node in nodes:
            node.start_sidecar(wait=False, layout_path=layout, consul_leader_key=key)
    for node in lab:
        node.sidecar.await_ready()
    until(lambda: len(lab[0].consul.instances("spegel-router")) == 4, timeout=20, what="all are in the catalog")
    until(
        lambda: all((members(node), metric(node, "spegel_catalog_members")) == (1, 2) for node in lab),
        timeout=20,
        what="each knows the other one of its cluster",
    )
    for key, nodes in clusters.items():
        assert json.loads(lab[0].consul.kv_get(key))["node"] in {node.name for node in nodes}

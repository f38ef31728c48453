# Consul's own authority, with ACLs that deny what no token allows: a token of the policy in consul/policies is all that
# a sidecar has.  One node has a runtime, the others serve an image layout.

"""TLS between nodes with Consul's certificates, while authorities, agents and modes change under pulls."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from lab.cluster import Cluster, MakeCluster, Node
from lab.connect_authority import ConnectAuthority
from lab.consul import ConsulOptions
from lab.containerd import PullError
from lab.image import MIB, Image, MakeImage
from lab.process import until

from tests.real.consul.sidecars import log_events
from tests.real.test_pull import members

pytestmark = pytest.mark.real

CONNECT = ConsulOptions(acl=True, hcl="connect { enabled = true }\n")
POLICY = Path(__file__).parents[2] / "consul/policies/spegel.hcl"
AT_NIGHT = os.environ.get("SPEGEL_FAULTS") == "all"  # `make faults`


class Mirrors:
    """``lab[0]`` pulls with a containerd; the others have the image."""

    def __init__(self, lab: Cluster, app: Image) -> None:
        self.lab, self.app = lab, app
        admin = lab[0].consul
        admin.cli("acl", "policy", "create", "-name", "spegel", "-rules", f"@{POLICY}")
        made = json.loads(admin.cli("acl", "token", "create", "-policy-name", "spegel", "-format=json"))
        self.token = str(made["SecretID"])
        lab[0].containerd.mirror(f"http://{lab[0].ip}:5000")

    def start(self, node: Node, mode: str, *, wait: bool = True) -> None:
        layout = {} if node.index == 0 else {"layout_path": self.app.layout}
        node.start_sidecar(wait=wait, env={"CONSUL_HTTP_TOKEN": self.token}, peer_tls=mode, **layout)

    def start_all(self, mode: str) -> None:
        for node in self.lab:
            self.start(node, mode, wait=False)
        for node in self.lab:
            node.sidecar.await_ready()
        for node in self.lab:
            self.await_ring(node)
        self.await_image()

    def await_ring(self, node: Node) -> None:
        others = len(self.lab.nodes) - 1
        node.sidecar.process.until(lambda: members(node) == others, timeout=30, what=f"{node} knows all members")

    def await_image(self) -> None:
        path = f"/v2/{self.app.repository}/manifests/{self.app.tag}?ns={self.app.registry}"
        until(lambda: self.lab[0].request(path).status == 200, timeout=20, what="the image is found")

    def restart(self, node: Node, mode: str) -> None:
        assert node.sidecar.stop() == 0
        self.start(node, mode)
        self.await_ring(node)

    def rotate(self) -> None:
        """As an operator with a root of his own."""
        domain = self.lab[0].consul.get("/v1/agent/connect/ca/roots")["TrustDomain"]
        key, certificate = ConnectAuthority(domain).exported()
        config = {"LeafCertTTL": "72h", "PrivateKey": key, "RootCert": certificate}
        self.lab[0].consul.put("/v1/connect/ca/configuration", {"Provider": "consul", "Config": config})

    @contextmanager
    def pulls(self) -> Iterator[Pulls]:
        pulls = Pulls(self.lab[0], self.app)
        pulls.thread.start()
        try:
            yield pulls
        finally:
            pulls.over.set()
            pulls.thread.join(90)
        assert not pulls.failed, pulls.failed


class Pulls:
    """One pull after the other, until ``over``."""

    def __init__(self, node: Node, app: Image) -> None:
        self.node, self.app = node, app
        self.done, self.failed = 0, list[str]()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.over.is_set():
            try:
                self.node.containerd.pull_cri(self.app.name, timeout=30)
                self.done += 1
            except PullError as exc:
                self.failed.append(str(exc)[:300])
                self.over.wait(0.5)
            with suppress(Exception):
                self.node.containerd.remove_image(self.app.name)

    def some(self, what: str, count: int = 2) -> None:
        """Wait until so many pulls have been done from now on."""
        done = self.done
        until(lambda: self.done >= done + count or self.failed, timeout=60, what=f"pulls: {what}")
        assert not self.failed, (what, self.failed)


def certificates(node: Node) -> list[tuple[str, int]]:
    """Serial numbers of the certificates so far, with the number of authorities."""
    return [(event["serial"], event["authorities"]) for event in log_events(node) if event["event"] == "certificate"]


def encrypted(node: Node) -> dict[str, object]:
    peers = json.loads(node.request("/api/peers", port=9090).body)
    return {peer["node"]: peer["encrypted"] for peer in peers if peer["state"] == "alive"}


def _authority_rotates(cluster: MakeCluster, image: MakeImage) -> None:
    lab = cluster(2, consul=CONNECT, containerd=["21", None])
    puller, holder = lab
    mirrors = Mirrors(lab, image(layers=[4 * MIB, 100]))
    mirrors.start_all("require")
    path = f"/v2/{mirrors.app.repository}/manifests/{mirrors.app.tag}?ns={mirrors.app.registry}"
    refused = puller.request(path, to=holder)
    assert (refused.status, b"over TLS only" in refused.body) == (403, True)
    assert puller.request("/readyz", to=holder).status == 200
    assert holder.request(path).status == 200
    with mirrors.pulls() as pulls:
        pulls.some("before the rotation", 1)
        mirrors.rotate()
        for node in lab:
            until(lambda node=node: certificates(node)[-1][1] == 2, timeout=20, what=f"{node} knows the new authority")
        pulls.some("after the rotation", 2)
    assert encrypted(puller) == {holder.name: True}
    # Consul's own check, in plain text from its machine, goes on
    until(lambda: len(holder.consul.instances("spegel")) == 2, timeout=20, what="both pass Consul's checks")
    for node in lab:
        assert "Traceback" not in node.sidecar.log()
        kept = node.dir / "spegel/consul-leaf.json"
        assert (kept.stat().st_mode & 0o777) == 0o600


def _moves_to_tls_and_its_agents_die(cluster: MakeCluster, image: MakeImage) -> None:
    lab = cluster(3, consul=CONNECT, containerd=["21", None, None])
    server, one, two = lab
    mirrors = Mirrors(lab, image(layers=[4 * MIB, 100], seed=3))
    mirrors.start_all("off")
    for mode in ("prefer", "require"):
        with mirrors.pulls() as pulls:
            pulls.some(f"before {mode}")
            for node in (one, two):
                mirrors.restart(node, mode)
                pulls.some(f"{node} has {mode}")
        # a runtime whose own mirror restarts goes upstream, and there is none here
        mirrors.restart(server, mode)
        mirrors.await_image()
    # one of them may not have been asked yet
    assert set(encrypted(server).values()) in ({True}, {True, None})
    with mirrors.pulls() as pulls:
        for authorities in (2, 3):
            pulls.some("before a rotation")
            before = {node: certificates(node)[-1][0] for node in lab}
            mirrors.rotate()
            for node in lab:
                until(
                    lambda node=node, number=authorities: certificates(node)[-1][1] == number,
                    timeout=30,
                    what=f"{node} knows authority {authorities}",
                )
            if authorities == 3:
                break
            for node in lab:
                until(
                    lambda node=node, old=before[node]: certificates(node)[-1][0] != old,
                    timeout=90,
                    what=f"{node} has a new certificate",
                )
        pulls.some("after the rotations")
        # an agent dies and comes back: its key was in its memory
        old = certificates(one)[-1][0]
        one.consul.running().kill9()
        time.sleep(2)
        one.consul.start()
        until(lambda: certificates(one)[-1][0] != old, timeout=90, what="a certificate of the new agent")
        pulls.some("after the agent")
        # the servers are gone, an agent restarts, and so does its sidecar: the kept certificate is all there is
        server.consul.running().kill9()
        two.consul.running().kill9()
        two.consul.start()
        assert two.sidecar.stop() == 0
        mirrors.start(two, "require")
        mirrors.await_ring(two)
        one.sidecar.stop()
        pulls.some("from the restarted node alone", 3)
    for node in lab:
        assert "Traceback" not in node.sidecar.log()


SCENES = [_authority_rotates, *([_moves_to_tls_and_its_agents_die] if AT_NIGHT else [])]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_pulls_go_on(scene: Callable[[MakeCluster, MakeImage], None], cluster: MakeCluster, image: MakeImage) -> None:
    scene(cluster, image)

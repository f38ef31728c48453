# The whole product, as an operator runs it: sidecars in front of real containerds and Docker, a ring that is
# formed through a leader elected in a real Consul, and runtimes that are pointed at it by hosts.toml.

"""A pull that comes from a neighbour, and what happens to pulls when parts of it die."""

from __future__ import annotations

import hashlib
import json
import signal
import time

import pytest
from lab.cluster import Cluster, Node
from lab.containerd import PullError
from lab.image import MIB, Image
from lab.process import check_took, until, within

pytestmark = pytest.mark.real

VERSIONS = ["16", "17", "21"]
LAYERS = [4 * MIB, MIB, 100]


def start_sidecars(lab: Cluster, **flags: str) -> None:
    """Start all at once, as a system job does, and wait until their rings have everybody."""
    for node in lab:
        node.start_sidecar(wait=False, **flags)
    for node in lab:
        node.sidecar.await_ready()
    for node in lab:
        node.sidecar.process.until(
            lambda node=node: members(node) == len(lab.nodes) - 1, timeout=20, what=f"{node} knows all members"
        )


def members(node: Node) -> float:
    return metric(node, "spegel_ring_members")


def metric(node: Node, name: str) -> float:
    for line in node.sidecar.metrics().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    return 0.0


def share(lab: Cluster, image: Image, server: str | None = None, *, on: int = 0) -> None:
    """Import the image on one node, and point all runtimes at their own sidecar, then at ``server``."""
    for node in lab:
        node.containerd.mirror(f"http://{node.ip}:5000", server=server)
    lab[on].containerd.import_image(image.tar)
    until(
        lambda: lab[on].request(f"/v2/{image.repository}/manifests/{image.tag}?ns={image.registry}").status == 200,
        timeout=10,
        what="the importing node serves the image",
    )


def assert_whole(node: Node, image: Image) -> None:
    assert image.digests <= node.containerd.content()
    for digest in image.digests:
        assert hashlib.sha256(node.containerd.blob(digest).read_bytes()).hexdigest() == digest.partition(":")[2]


def leader(node: Node) -> dict[str, object]:
    """What ``consul kv get spegel/leader`` prints; empty while there is none."""
    value = node.consul.kv_get("spegel/leader")
    return json.loads(value) if value else {}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_that_no_upstream_has_comes_from_a_neighbour(cluster, image, version: str) -> None:
    lab = cluster(3, containerd=version)
    upstream = lab.start_registry(on=2)
    app = image(layers=LAYERS)
    start_sidecars(lab)
    share(lab, app, upstream.url)
    until(lambda: leader(lab[1]).get("state") == "held", timeout=10, what="there is a leader")

    lab[1].containerd.pull_cri(app.name)

    assert_whole(lab[1], app)
    assert upstream.requests() == []
    for node in lab:
        assert "Traceback" not in node.sidecar.log()


@pytest.mark.parametrize("version", VERSIONS)
def test_tags_digests_and_platforms(cluster, image, version: str) -> None:
    lab = cluster(2, containerd=version)
    tagged, pinned = image(layers=[MIB]), image("quay.io/team/tool:v2", layers=[MIB], seed=2)
    start_sidecars(lab)
    share(lab, tagged)
    share(lab, pinned)
    if version == "21":
        # its ctr also wants the other platform's manifest, which the importing node's garbage collection took
        lab[1].containerd.pull_cri(tagged.name)
    else:
        lab[1].containerd.pull_ctr(tagged.name)
    assert_whole(lab[1], tagged)
    by_digest = f"{pinned.registry}/{pinned.repository}@{pinned.index}"
    lab[1].containerd.pull_cri(by_digest)
    assert_whole(lab[1], pinned)
    with pytest.raises(PullError):
        lab[1].containerd.pull_cri("quay.io/team/absent:v1", timeout=20)


def test_what_was_pulled_is_passed_on(cluster, image) -> None:
    lab = cluster(3)
    app = image(layers=LAYERS)
    start_sidecars(lab)
    share(lab, app)
    lab[1].containerd.pull_cri(app.name)
    lab[0].sidecar.kill9()
    until(lambda: members(lab[2]) == 1, timeout=10, what="the third node knows that the first is gone")
    lab[2].containerd.pull_cri(app.name)
    assert_whole(lab[2], app)


def test_a_leader_that_stops_hands_over_at_once(cluster, image) -> None:
    lab = cluster(3)
    app = image(layers=LAYERS)
    start_sidecars(lab)
    share(lab, app)
    until(lambda: leader(lab[0]).get("state") == "held", timeout=10, what="there is a leader")
    old = next(node for node in lab if node.name == leader(lab[0])["node"])
    others = [node for node in lab if node is not old]

    before = time.monotonic()
    old.sidecar.stopped = True
    old.sidecar.process.signal(signal.SIGTERM)
    until(
        lambda: leader(others[0]).get("node") in {node.name for node in others},
        timeout=10,
        what="another node leads",
    )
    check_took(time.monotonic() - before, 2, "the lead changed")
    assert json.loads(others[0].consul.cli("kv", "get", "spegel/leader"))["node"] != old.name
    assert old.sidecar.process.wait(15) == 0

    # an image that only a survivor has, pulled by the other one through what is left of the ring
    another = image("docker.io/library/other:v1", layers=LAYERS, seed=7)
    others[0].containerd.import_image(another.tar)
    until(
        lambda: others[1].request(f"/v2/{another.repository}/manifests/{another.tag}").status == 200,
        timeout=10,
        what="the other node finds the image",
    )
    others[1].containerd.pull_cri(another.name)
    assert_whole(others[1], another)


def test_a_leader_that_is_killed_is_replaced_within_its_check_and_the_lock_delay(cluster) -> None:
    lab = cluster(3)
    start_sidecars(lab)
    until(lambda: leader(lab[0]).get("state") == "held", timeout=10, what="there is a leader")
    old = next(node for node in lab if node.name == leader(lab[0])["node"])
    survivors = {node.name for node in lab if node is not old}
    until(lambda: "Session" in (old.consul.kv_entry("spegel/leader") or {}), timeout=10, what="the lock is held")
    old.sidecar.kill9()
    before = time.monotonic()
    until(lambda: leader(lab[0]).get("node") in survivors, timeout=40, what="another node leads")
    check_took(time.monotonic() - before, 20, "the lead changed")


def test_the_name_in_dns_answers_healthy_mirrors_only(cluster) -> None:
    lab = cluster(3)
    start_sidecars(lab)
    everybody = {node.ip for node in lab}
    until(lambda: set(lab[0].dig("spegel.service.consul")) == everybody, timeout=20, what="DNS knows all mirrors")
    ports = {line.split()[2] for line in lab[0].dig("spegel.service.consul", "SRV")}
    assert ports == {"5000"}

    lab[1].sidecar.kill9()
    until(
        lambda: set(lab[0].dig("spegel.service.consul")) == everybody - {lab[1].ip},
        timeout=20,
        what="DNS left out the mirror that died",
    )
    lab[2].containerd.running().kill9()  # alive, but with nothing to serve
    until(
        lambda: lab[2].request("/readyz").status == 503, timeout=20, what="the third mirror says that it is not ready"
    )
    until(
        lambda: set(lab[0].dig("spegel.service.consul")) == {lab[0].ip},
        timeout=20,
        what="DNS left out the mirror that is not ready",
    )
    assert lab[0].sidecar.stop() == 0
    until(lambda: lab[0].dig("spegel.service.consul") == [], timeout=10, what="a stopped mirror left the catalog")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_dead_sidecar_costs_nothing_but_the_way_to_upstream(cluster, image, version: str) -> None:
    lab = cluster(2, containerd=version)
    upstream = lab.start_registry(on=0)
    app = image(layers=LAYERS)
    upstream.push(app)
    start_sidecars(lab)
    share(lab, app, upstream.url)
    lab[1].sidecar.kill9()
    with within(10, "a pull without a sidecar"):
        lab[1].containerd.pull_cri(app.name)
    assert_whole(lab[1], app)
    assert any(app.index in request for request in upstream.requests())


def test_docker_pulls_from_containerd_and_the_other_way_round(cluster, image) -> None:
    lab = cluster(2, containerd=["21", None])
    lab[1].add_docker("28").await_ready()
    app, tool = image(layers=LAYERS), image("ghcr.io/team/tool:v2", layers=[MIB], seed=2)
    start_sidecars(lab)
    lab[0].containerd.mirror(f"http://{lab[0].ip}:5000")
    lab[1].docker.mirror(f"http://{lab[1].ip}:5000")
    lab[0].containerd.import_image(app.tar)
    lab[0].containerd.import_image(tool.tar)
    for wanted in (app, tool):
        path = f"/v2/{wanted.repository}/manifests/{wanted.tag}?ns={wanted.registry}"
        until(lambda path=path: lab[1].request(path).status == 200, timeout=10, what=f"{path} is found")
        lab[1].docker.pull(wanted.name)
        assert wanted.digests <= lab[1].docker.content()

    lab[0].containerd.remove_image(tool.name)
    lab[0].containerd.pull_cri(tool.name)
    assert_whole(lab[0], tool)

# Nomad's bridge networks: the sidecar has an address of its own behind the host's, and ports that are mapped to it by
# NAT.  Nobody outside can reach that address, so all depends on what is advertised.

"""The sidecar behind a port mapping."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from lab.cluster import Cluster, Node
from lab.consul import ConsulOptions
from lab.image import MIB
from lab.netns import Netns, Response
from lab.process import until
from lab.sidecar import Sidecar

pytestmark = pytest.mark.real

HOST, TASK = "172.26.64.1", "172.26.64.2"
PORTS = "5000,5001,9090"
OWN_PORT = 5002


@pytest.fixture
def bridged(cluster, request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, Netns]]:
    """Two nodes, and a task's network namespace on the first of them. A parameter is Consul's configuration."""
    lab = cluster(2, consul=ConsulOptions(hcl=getattr(request, "param", "")))
    node = lab[0]
    task = Netns(f"{node.netns.name}t")
    task.add()
    try:
        node.netns.ip(*f"link add nomad type veth peer name eth0 netns {task.name}".split())
        node.netns.ip("addr", "add", f"{HOST}/20", "dev", "nomad")
        node.netns.ip("link", "set", "nomad", "up")
        task.ip("addr", "add", f"{TASK}/20", "dev", "eth0")
        task.ip("link", "set", "eth0", "up")
        task.ip("route", "add", "default", "via", HOST)
        node.netns.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for chain in ("PREROUTING", "OUTPUT"):
            rule = (
                f"-t nat -A {chain} -d {node.ip} -p tcp -m multiport --dports {PORTS} -j DNAT --to-destination {TASK}"
            )
            node.netns.run("iptables", "-w", *rule.split())
        node.netns.run("iptables", "-w", *f"-t nat -A POSTROUTING -s {TASK} -j MASQUERADE".split())
        yield lab, task
    finally:
        task.delete()


def start_in(task: Netns, node: Node, **flags: str) -> Sidecar:
    place = SimpleNamespace(ip=node.ip, netns=task, index=node.index)
    given = {
        "node_name": node.name,
        "data_dir": node.dir / "spegel",
        "log_level": "debug",
        "containerd_sock": node.containerd.sock,
        "containerd_namespace": "k8s.io",
        "containerd_content_path": node.containerd.content_path,
    }
    return Sidecar(place, node.dir / "sidecar", given | flags, {"CONSUL_HTTP_ADDR": f"{node.ip}:8500"})


def test_peers_reach_it_by_the_advertised_address_only(bridged, image) -> None:
    lab, task = bridged
    inner, outer = lab.nodes
    assert not outer.netns.ping(TASK)
    sidecar = start_in(task, inner, advertise_addr=inner.ip)
    until(lambda: ready(inner), timeout=30, what=f"the mapped port answers\n{sidecar.process.tail()}")
    outer.start_sidecar()
    try:
        (identity,) = json.loads(outer.request("/id", to=inner, port=9090).body)
        assert identity["Addrs"] == [f"/ip4/{inner.ip}/tcp/5001"]
        until(lambda: len(outer.consul.instances("spegel")) == 2, timeout=20, what="both are healthy in the catalog")
        addresses = {row["Service"]["Address"] for row in outer.consul.instances("spegel-router")}
        assert addresses == {inner.ip, outer.ip}
        leader = json.loads(outer.consul.kv_get("spegel/leader"))
        assert TASK not in json.dumps(leader)

        # from the task to a neighbour, and from a neighbour to the task
        for number, (owner, asker) in enumerate([(inner, outer), (outer, inner)]):
            app = image(f"docker.io/library/app{number}:v1", layers=[MIB], seed=number)
            owner.containerd.import_image(app.tar)
            path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
            until(
                lambda asker=asker, path=path: asker.request(path).status == 200,
                timeout=20,
                what=f"{asker} finds what {owner} has\n{sidecar.process.tail()}",
            )
            asker.containerd.mirror(f"http://{asker.ip}:5000")
            asker.containerd.pull_cri(app.name)
            assert app.digests <= asker.containerd.content()

        # the task's own node asks whether a tag has moved, although NAT hides that it is the node that asks
        moved = image("docker.io/library/app1:v1", layers=[MIB], seed=7)
        outer.containerd.import_image(moved.tar)
        path = f"/v2/{moved.repository}/blobs/{moved.amd64.config}?ns={moved.registry}"
        until(lambda: inner.request(path).status == 200, timeout=20, what="what the tag has moved to is found")
        inner.containerd.pull_cri(moved.name)
        assert moved.digests <= inner.containerd.content()
        assert sidecar.stop() == 0
        assert outer.consul.instances("spegel", passing=False)[0]["Service"]["Address"] == outer.ip
    finally:
        sidecar.kill9()


@pytest.mark.parametrize("bridged", ["connect { enabled = true }\n"], indirect=True, ids=["connect"])
def test_the_runtime_of_a_node_that_requires_tls_has_a_port_of_its_own(bridged, image) -> None:
    """By the loopback address it comes through NAT with the address of the bridge, as strangers may."""
    lab, task = bridged
    inner, outer = lab.nodes
    app = image(layers=[MIB])
    for rule in (
        f"-A OUTPUT -d 127.0.0.1 -p tcp -m multiport --dports 5000,{OWN_PORT} -j DNAT --to-destination {TASK}",
        f"-A POSTROUTING -s 127.0.0.1 -d {TASK} -j MASQUERADE",
    ):
        inner.netns.run("iptables", "-w", "-t", "nat", *rule.split())
    inner.netns.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/nomad/route_localnet")
    sidecar = start_in(task, inner, advertise_addr=inner.ip, peer_tls="require", runtime_addr=f":{OWN_PORT}")
    outer.start_sidecar(peer_tls="require", layout_path=app.layout)
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"

    def by_loopback(port: int) -> Response:
        return inner.netns.request("GET", "127.0.0.1", port, path, timeout=3)

    def is_served() -> bool:
        try:
            return by_loopback(OWN_PORT).status == 200
        except OSError:
            return False

    try:
        until(is_served, timeout=30, what=f"its runtime is served\n{sidecar.process.tail()}")
        refused = by_loopback(5000)
        assert (refused.status, b"over TLS only" in refused.body) == (403, True)
        with pytest.raises(OSError, match="refused"):
            outer.request(path, to=inner, port=OWN_PORT)
        inner.containerd.mirror(f"http://127.0.0.1:{OWN_PORT}")
        inner.containerd.pull_cri(app.name)
        assert app.digests <= inner.containerd.content()
        peers = json.loads(inner.request("/api/peers", port=9090).body)
        assert [peer["encrypted"] for peer in peers if peer["state"] == "alive"] == [True]
        words = ["preflight", "--peer-tls=require", f"--advertise-addr={inner.ip}", "--json"]
        for given, warned in (([], True), ([f"--runtime-addr=:{OWN_PORT}"], False)):
            argv = task.inside([sys.executable, "-m", "spegel_consul", *words, *given])
            said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout
            assert ("--runtime-addr :5002" in said) is warned, said
    finally:
        sidecar.kill9()


def ready(node: Node) -> bool:
    try:
        return node.request("/readyz", timeout=2).status == 200
    except OSError:
        return False


def test_nodes_that_advertise_ipv6(cluster, image) -> None:
    lab = cluster(2)
    for node in lab:
        # "nodad": usable at once
        node.netns.ip(*f"addr add fd00:6::1{node.index}/64 dev eth0 nodad".split())
    for node, told in zip(lab, ("fd00::/8", "fd00::/8,198.51.100.0/24"), strict=True):
        node.start_sidecar(advertise_addr=told, env={"CONSUL_HTTP_ADDR": "127.0.0.1:8500"})
    (identity,) = json.loads(lab[1].request("/id", to=lab[0], port=9090).body)
    assert identity["Addrs"] == ["/ip6/fd00:6::10/tcp/5001"]
    until(lambda: len(lab[1].consul.instances("spegel")) == 2, timeout=20, what="both are healthy in the catalog")
    assert set(lab[1].dig("spegel.service.consul", "AAAA")) == {"fd00:6::10", "fd00:6::11"}
    (both,) = [row["Service"] for row in lab[1].consul.instances("spegel") if row["Node"]["Node"] == lab[1].name]
    assert both["TaggedAddresses"]["lan_ipv4"] == {"Address": lab[1].ip, "Port": 5000}
    assert both["TaggedAddresses"]["lan_ipv6"] == {"Address": "fd00:6::11", "Port": 5000}
    app = image(layers=[MIB])
    lab[0].containerd.import_image(app.tar)
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: lab[1].request(path).status == 200, timeout=20, what="the neighbour finds the image")
    lab[1].containerd.mirror("http://[fd00:6::11]:5000")
    lab[1].containerd.pull_cri(app.name)
    assert app.digests <= lab[1].containerd.content()


def test_a_node_of_both_families_between_nodes_of_one(cluster, image) -> None:
    lab = cluster(3, consul=False)
    both, only6, only4 = lab
    for node in (both, only6):
        node.netns.ip(*f"addr add fd00:6::1{node.index}/64 dev eth0 nodad".split())
    only6.netns.ip("addr", "del", f"{only6.ip}/24", "dev", "eth0")
    v4, v6 = f"{both.ip}:5001", "[fd00:6::10]:5001"
    both.start_sidecar(advertise_addr="198.51.100.0/24,fd00::/8", static_bootstrap_peers=v4)
    only6.start_sidecar(wait=False, advertise_addr="fd00::/8", static_bootstrap_peers=v6)
    only4.start_sidecar(wait=False, advertise_addr=only4.ip, static_bootstrap_peers=v4)
    (identity,) = json.loads(both.request("/id", port=9090).body)
    assert identity["Addrs"] == [f"/ip4/{both.ip}/tcp/5001", "/ip6/fd00:6::10/tcp/5001"]

    def status(node: Node, path: str) -> int:
        try:
            return node.netns.request("GET", "127.0.0.1", 5000, path, timeout=3).status
        except OSError:
            return 0

    for seed, (owner, asker) in enumerate([(both, only6), (both, only4), (only6, both), (only4, both)], 40):
        app = image(f"docker.io/library/app{seed}:v1", layers=[MIB], seed=seed)
        owner.containerd.import_image(app.tar)
        path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
        until(
            lambda asker=asker, path=path: status(asker, path) == 200,
            timeout=30,
            what=f"{asker} finds what {owner} has\n{asker.sidecar.process.tail()}",
        )
        asker.containerd.mirror("http://127.0.0.1:5000")
        asker.containerd.pull_cri(app.name)
        assert app.digests <= asker.containerd.content()

"""One ring, although every node was told another way to find it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab.certificates import Authority
from lab.cluster import Cluster, Node
from lab.consul import ConsulOptions

pytestmark = pytest.mark.real


def layout(lab: Cluster) -> dict[str, str | Path]:
    """Nothing to serve: these tests are about the ring."""
    empty = lab.dir / "empty"
    (empty / "blobs/sha256").mkdir(parents=True)
    (empty / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (empty / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    return {"layout_path": empty}


def members(node: Node) -> int:
    try:
        text = node.sidecar.metrics()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("spegel_ring_members "):
            return int(float(line.split()[-1]))
    return 0


def everybody_knows_everybody(lab: Cluster) -> None:
    for node in lab:
        node.sidecar.process.until(
            lambda node=node: members(node) == len(lab.nodes) - 1, timeout=60, what=f"{node} knows everybody"
        )
        assert node.request("/readyz", port=9090).status == 200


def test_six_ways_into_one_ring(cluster) -> None:
    lab = cluster(6, containerd=None)
    flags = layout(lab)
    authority = Authority.make(lab.dir)
    rendered = lab.dir / "peers"
    rendered.write_text('[{"Addrs": ["/ip4/198.51')  # a template that is being written
    dns = {"dns_bootstrap_domain": "spegel-router.service.consul", "dns_bootstrap_server": "127.0.0.1:8600"}
    nowhere = "198.51.100.200:5001"
    for node, way in zip(
        lab,
        (
            {"bootstrap_kind": "consul"},
            {"bootstrap_kind": "catalog"},
            {"bootstrap_kind": "dns", **dns},
            # over mutual TLS, at the registry's port and with the certificates of the registries
            {"bootstrap_kind": "http", "http_bootstrap_url": f"https://{lab[0].ip}:5000/id"},
            {"bootstrap_kind": "file", "bootstrap_file": rendered},
            # the first names somebody who is not there, so the second is listened to as well
            {"bootstrap_kind": "static,consul", "static_bootstrap_peers": nowhere},
        ),
        strict=True,
    ):
        cert, key = authority.issue(lab.dir, node.name, node.ip)
        tls = {"tls_cert_file": cert, "tls_key_file": key, "tls_ca_file": authority.path, "tls_verify_clients": True}
        node.start_sidecar(wait=False, **flags, **way, **tls)
    rendered.write_text(f"# from a template\n{lab[0].ip}:5001\n")
    everybody_knows_everybody(lab)
    leader = json.loads(lab[0].consul.kv_get("spegel/leader"))
    assert leader["http"] == f"{leader['registry']}/id"
    assert leader["http"].startswith("https://")
    for node in lab:
        assert "Traceback" not in node.sidecar.log()


def test_without_a_consul_token_it_serves_and_joins_by_the_next_way(cluster) -> None:
    lab = cluster(2, consul=ConsulOptions(acl=True), containerd=None)
    flags = layout(lab)
    lab[0].start_sidecar(**flags)
    ways = {"bootstrap_kind": "consul,http", "http_bootstrap_url": f"http://{lab[0].ip}:9090/id"}
    lab[1].start_sidecar(env={"CONSUL_HTTP_TOKEN": ""}, **flags, **ways)
    everybody_knows_everybody(lab)
    assert "Permission denied" in lab[1].sidecar.log()
    assert "Traceback" not in lab[1].sidecar.log()
    assert lab[1].sidecar.stop() == 0

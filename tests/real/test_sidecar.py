"""The sidecar on its own: its start, its stop, and what it does while other daemons are away."""

from __future__ import annotations

import json
import re
import sys

import pytest
from lab.image import MIB
from lab.process import until, within

pytestmark = pytest.mark.real


def test_no_containerd_at_the_start(cluster, image) -> None:
    lab = cluster(1, consul=False, containerd=None)
    socket = lab.dir / "n0" / "ctd" / "c.sock"
    sidecar = lab[0].start_sidecar(
        wait=False, containerd_sock=socket, containerd_namespace="k8s.io", static_bootstrap_peers=f"{lab[0].ip}:5001"
    )
    sidecar.process.until(lambda: b"c.sock" in ask(lab[0]).body, timeout=20, what="/readyz tells what is missing")
    response = ask(lab[0])
    assert response.status == 503
    assert str(socket).encode() in response.body
    assert response.body.count(b"\n") == 1
    lab[0].add_containerd("21").await_ready()
    sidecar.await_ready()
    app = image(layers=[MIB])
    lab[0].containerd.import_image(app.tar)
    path = f"/v2/{app.repository}/blobs/{app.amd64.layers[1]}"
    until(lambda: lab[0].request(path).status == 200, timeout=10, what="the imported layer is served")
    assert lab[0].request(path).body == app.blob(app.amd64.layers[1]).read_bytes()
    assert "Traceback" not in sidecar.log()


def ask(node):
    try:
        return node.sidecar.get("/readyz")
    except OSError:
        return type("NoAnswer", (), {"status": 0, "body": b""})


def test_containerd_restarts_underneath(cluster, image) -> None:
    lab = cluster(1, consul=False)
    app, other = image(layers=[MIB]), image("docker.io/library/other:v1", layers=[MIB], seed=9)
    lab[0].containerd.import_image(app.tar)
    lab[0].start_sidecar(static_bootstrap_peers=f"{lab[0].ip}:5001")
    path = f"/v2/{app.repository}/blobs/{app.amd64.layers[1]}"
    assert lab[0].request(path).status == 200
    lab[0].containerd.restart()
    lab[0].containerd.await_ready()
    assert lab[0].request(path).status == 200
    lab[0].containerd.import_image(other.tar)
    path = f"/v2/{other.repository}/manifests/{other.tag}"
    until(lambda: lab[0].request(path).status == 200, timeout=15, what="the store follows the new containerd")
    assert "Traceback" not in lab[0].sidecar.log()


def test_no_consul_at_the_start_and_later_one(cluster, image) -> None:
    lab = cluster(2)
    for node in lab:
        node.consul.running().kill9()
    app = image(layers=[MIB])
    lab[0].containerd.import_image(app.tar)
    for node in lab:
        node.start_sidecar()
    assert lab[0].request(f"/v2/{app.repository}/manifests/{app.tag}").status == 200
    for node in lab:
        node.consul.start()
    until(
        lambda: lab[1].request(f"/v2/{app.repository}/manifests/{app.tag}").status == 200,
        timeout=40,
        what="the nodes found each other once Consul was there",
    )
    for node in lab:
        assert "Traceback" not in node.sidecar.log()


def test_consul_dies_and_pulls_go_on(cluster, image) -> None:
    lab = cluster(2)
    app = image(layers=[MIB])
    for node in lab:
        node.start_sidecar()
    lab[0].containerd.import_image(app.tar)
    path = f"/v2/{app.repository}/manifests/{app.tag}"
    until(lambda: lab[1].request(path).status == 200, timeout=20, what="the ring works")
    for node in lab:
        node.consul.running().kill9()
    lab[1].containerd.mirror(f"http://{lab[1].ip}:5000")
    lab[1].containerd.pull_cri(app.name)
    assert app.digests <= lab[1].containerd.content()


def test_a_port_in_use_is_one_line_and_exit_1(cluster) -> None:
    lab = cluster(1, consul=False)
    lab[0].start_sidecar(static_bootstrap_peers=f"{lab[0].ip}:5001")
    for flag, used in (("registry-addr", 5000), ("router-addr", 5001), ("metrics-addr", 9090)):
        argv = [sys.executable, "-m", "spegel_consul", "registry", "--bootstrap-kind=static"]
        argv += ["--static-bootstrap-peers=10.0.0.1:5001", "--data-dir", str(lab.dir / "second")]
        argv += [
            f"--{name}=:{free}"
            for name, free in (("registry-addr", 6000), ("router-addr", 6001), ("metrics-addr", 6002))
        ]
        second = lab[0].netns.start("second", [*argv, f"--{flag}=:{used}"], log_path=lab.dir / f"{flag}.log")
        assert second.wait(20) == 1
        lines = second.log().splitlines()
        assert len(lines) == 1, lines
        assert f"--{flag} :{used}: address already in use" in lines[0]


def test_identity_and_stop(cluster) -> None:
    lab = cluster(1)
    first = lab[0].start_sidecar()
    peer = json.loads(lab[0].request("/id", port=9090).body)
    assert re.fullmatch("12D3Koo[a-zA-Z0-9]+", peer[0]["ID"])
    assert peer[0]["Addrs"] == [f"/ip4/{lab[0].ip}/tcp/5001"]
    key = lab[0].dir / "spegel" / "private.key"
    assert key.stat().st_mode & 0o777 == 0o600
    until(lambda: lab[0].consul.instances("spegel"), timeout=20, what="it is in the catalog")
    with within(5, "it stops"):
        assert first.stop() == 0
    for service in ("spegel", "spegel-router", "spegel-metrics"):
        assert lab[0].consul.instances(service, passing=False) == []
    lab[0].start_sidecar()
    assert json.loads(lab[0].request("/id", port=9090).body) == peer

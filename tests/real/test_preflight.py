"""``spegel-consul preflight`` on real nodes, and what the sidecar makes of its findings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from lab.cluster import Cluster, MakeCluster, Node
from lab.cold_start import metric
from lab.consul import ConsulOptions
from lab.containerd import PullError
from lab.image import MIB, Image, MakeImage
from lab.process import until

pytestmark = pytest.mark.real

POLICIES = Path(__file__).parents[2] / "consul/policies"
POLICY, READER = POLICIES / "spegel.hcl", POLICIES / "spegel-reader.hcl"


class Report:
    def __init__(self, status: int, checks: list[dict[str, str]]) -> None:
        self.status = status
        self._checks = {check["name"]: check for check in checks}

    def __getitem__(self, name: str) -> str:
        return self._checks[name]["status"]

    def says(self, name: str) -> str:
        return f"{self._checks[name]['says']} | {self._checks[name]['fix']}"

    def failures(self) -> list[str]:
        return [name for name, check in self._checks.items() if check["status"] != "ok"]


def preflight(node: Node, *words: str, env: Mapping[str, str] | None = None) -> Report:
    config = node.containerd.certs_d.parent / "config.toml"
    argv: list[str | Path] = [sys.executable, "-m", "spegel_consul", "preflight", "--json"]
    argv += [f"--containerd-sock={node.containerd.sock}", f"--containerd-config={config}", *node.places, *words]
    argv = [word for word in argv if not str(word).startswith("--docker-daemon-config")]
    done = subprocess.run(
        node.netns.inside(["env", *(f"{name}={value}" for name, value in (env or {}).items()), *argv]),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return Report(done.returncode, json.loads(done.stdout))


def start(lab: Cluster) -> None:
    for node in lab:
        node.start_sidecar(wait=False)
    for node in lab:
        node.sidecar.await_ready()
    until(lambda: len(lab[1].consul.instances("spegel")) == 2, timeout=20, what="both are in the catalog")


def test_a_containerd_without_an_image(cluster: MakeCluster) -> None:
    lab = cluster(2)
    start(lab)
    lab[1].configure("--runtime=containerd")
    report = preflight(lab[1])
    assert report.failures() == []
    assert "the first image makes" in report.says("namespace")
    report = preflight(lab[1], "--containerd-content-path=/no/such")
    assert report.failures() == ["content"]


def test_a_node_that_is_right_and_what_can_be_wrong(cluster: MakeCluster, image: MakeImage) -> None:
    lab = cluster(2, consul=ConsulOptions(acl=True))
    node = lab[1]
    node.containerd.import_image(image(layers=[MIB]).tar)
    start(lab)
    node.configure("--runtime=containerd")
    policy = node.consul.put("/v1/acl/policy", {"Name": "spegel", "Rules": POLICY.read_text()})
    token = node.consul.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"]
    env = {"CONSUL_HTTP_TOKEN": token}

    report = preflight(node, env=env)
    assert report.failures() == []
    assert report.status == 0
    assert f"{lab[0].ip} can connect to {node.ip}:5000" in report.says("dial-back")
    assert "k8s.io" in report.says("namespace")

    node.port.drop_port(5000)
    report = preflight(node, env=env)
    assert (report.status, report.failures()) == (1, ["dial-back"])
    assert "no answer within 1 s" in report.says("dial-back")
    node.port.heal()

    report = preflight(node)
    assert (report.status, report["acl"]) == (1, "fail")
    assert 'key "spegel/leader" { policy = "write" }' in report.says("acl")
    assert "does not know the token" in preflight(node, env={"CONSUL_HTTP_TOKEN": "x"}).says("acl")

    assert node.sidecar.stop() == 0
    report = preflight(node, env=env)
    assert "does not answer" in report.says("containerd-hosts")
    node.spegel("cleanup", *node.places)
    report = preflight(node, env=env)
    assert "spegel-consul configuration --runtime containerd" in report.says("containerd-hosts")

    for daemon in lab:
        daemon.consul.running().kill9()
    node.containerd.running().kill9()
    report = preflight(node, env=env)
    assert (report["consul"], report["containerd"]) == ("fail", "fail")
    assert "nobody listens" in report.says("containerd")


def test_the_rights_of_a_node_that_only_reads_the_catalog(cluster: MakeCluster) -> None:
    lab = cluster(2, consul=ConsulOptions(acl=True))
    first, node = lab
    first.start_sidecar()
    until(lambda: first.consul.instances("spegel-router"), timeout=20, what="there is a router to find")
    policy = node.consul.put("/v1/acl/policy", {"Name": "reader", "Rules": READER.read_text()})
    token = node.consul.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"]
    env = {"CONSUL_HTTP_TOKEN": token}
    report = preflight(node, "--bootstrap-kind=catalog", env=env)
    assert (report["consul"], report.says("acl")) == (
        "ok",
        'the token lacks service:write | service_prefix "spegel" { policy = "write" }',
    )
    report = preflight(node, "--bootstrap-kind=catalog", "--consul-service=external", env=env)
    assert (report["consul"], report["acl"]) == ("ok", "ok")
    report = preflight(node, "--bootstrap-kind=catalog", "--consul-service=external")
    assert report.says("acl").startswith("the token lacks service:read, node:read |")
    assert 'service_prefix "spegel" { policy = "read" }' in report.says("acl")

    # and so it is: the sidecar itself finds the other one with these rights, and misses none
    node.start_sidecar(bootstrap_kind="catalog", consul_service="external", env=env)
    sidecar = node.sidecar
    until(lambda: '"preflight"' in sidecar.log(), timeout=20, what="it has checked the node")
    found = [event for event in map(json.loads, sidecar.log().splitlines()) if event["event"] == "preflight"]
    assert {event["status"] for event in found if event["check"] in ("consul", "acl")} == {"ok"}
    until(lambda: metric(node, "spegel_ring_members") == 1, timeout=20, what="it has joined")

    for each in lab:
        each.consul.running().kill9()
    assert preflight(node, "--bootstrap-kind=catalog", env=env)["consul"] == "fail"


def test_rules_for_one_node_and_for_one_service(cluster: MakeCluster) -> None:
    """A session for this node alone is enough; the service ``spegel`` alone is not."""
    node = cluster(1, consul=ConsulOptions(acl=True))[0]
    node.start_sidecar()

    def acl_with(**changes: str) -> str:
        """The finding with the policy's rules, some of them changed; ``session="n0"`` is for this name alone."""
        rules = POLICY.read_text()
        for resource, name in changes.items():
            assert f"{resource}_prefix " in rules
            rules = re.sub(rf'{resource}_prefix ".*?"', f'{resource} "{name}"', rules)
        policy = node.consul.put(
            "/v1/acl/policy", {"Name": "-".join(["p", *changes, *changes.values()]), "Rules": rules}
        )
        token = node.consul.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"]
        report = preflight(node, env={"CONSUL_HTTP_TOKEN": token})
        return f"{report['acl']}: {report.says('acl')}"

    own = node.consul.name
    assert acl_with(session=own).startswith("ok: ")
    assert acl_with(session="other").startswith("fail: the token lacks session:write |")
    assert acl_with(session=own, agent="other").startswith("warn: the agent does not tell the name")
    assert acl_with(agent="other").startswith("ok: ")
    assert acl_with(service="spegel") == (
        'fail: the token lacks service:write | service_prefix "spegel" { policy = "write" }'
    )


def test_docker(cluster: MakeCluster) -> None:
    lab = cluster(1, consul=False)
    node = lab[0]
    docker = node.add_docker("28")
    docker.await_ready()
    words = (f"--docker-sock={docker.sock}", "--bootstrap-kind=static")
    report = preflight(node, *words)
    assert report["docker"] == "ok"
    assert "spegel-consul configuration --runtime docker" in report.says("docker-hosts")
    node.start_sidecar(static_bootstrap_peers=f"{node.ip}:5001")
    node.configure("--runtime=docker")
    assert preflight(node, *words)["docker-hosts"] == "ok"


def test_docker_28_asks_its_registry_mirrors_without_a_file(cluster: MakeCluster, image: MakeImage) -> None:
    lab = cluster(2, consul=False)
    first, node = lab
    app = image("docker.io/library/app:v1", layers=[MIB])
    first.containerd.import_image(app.tar)
    docker = node.add_docker("28", mirrors=["http://127.0.0.1:5000"])
    docker.await_ready()
    for each in lab:
        each.start_sidecar(static_bootstrap_peers=f"{first.ip}:5001,{node.ip}:5001")
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: node.request(path).status == 200, timeout=20, what="the neighbour's image is found")
    docker.pull(app.name, timeout=30)
    report = preflight(node, f"--docker-sock={docker.sock}", "--bootstrap-kind=static", "--runtime=docker")
    assert (report["docker-hosts"], report["docker-mirrors"]) == ("warn", "ok")
    assert "for docker.io only" in report.says("docker-hosts")


def with_a_list(cluster: MakeCluster, app: Image, **options: str) -> Node:
    """A node whose containerd has a list as config_path, as some distributions ship it; its neighbour has the image."""
    lab = cluster(2, consul=False, containerd=["21", None])
    node = lab[1]
    lab[0].containerd.import_image(app.tar)
    node.add_containerd("21", config_path="{certs_d}:/etc/docker/certs.d", **options).await_ready()
    for each in lab:
        each.start_sidecar(static_bootstrap_peers=f"{lab[0].ip}:5001,{lab[1].ip}:5001")
    node.configure("--runtime=containerd")
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: node.request(path).status == 200, timeout=20, what="the neighbour's image is found")
    return node


def test_a_list_in_config_path_and_discarded_layers(cluster: MakeCluster, image: MakeImage) -> None:
    # containerd 2.1 then reads no hosts.toml at all, and preflight knows it
    app = image(layers=[MIB])
    node = with_a_list(cluster, app)
    with pytest.raises(PullError):
        node.containerd.pull_cri(app.name, timeout=20)
    report = preflight(node, "--bootstrap-kind=static")
    assert "ignores every hosts.toml" in report.says("config-path")

    node.containerd.reconfigure(config_path="{certs_d}", discard_unpacked_layers=True)
    node.containerd.pull_cri(app.name)
    report = preflight(node, "--bootstrap-kind=static")
    assert (report["config-path"], report["discard-unpacked-layers"]) == ("ok", "fail")


def test_a_list_in_config_path_and_a_setting_that_the_transfer_service_lacks(
    cluster: MakeCluster, image: MakeImage
) -> None:
    """containerd 2.1 then pulls with its older client, which reads each directory of the list."""
    app = image(layers=[MIB])
    node = with_a_list(cluster, app, image_options="  max_concurrent_downloads = 10")
    node.containerd.pull_cri(app.name)
    assert preflight(node, "--bootstrap-kind=static")["config-path"] == "ok"


@pytest.mark.parametrize(("version", "status"), [("16", "fail"), ("17", "fail"), ("21", "ok")])
def test_certificates_in_the_configuration_beside_config_path(cluster: MakeCluster, version: str, status: str) -> None:
    node = cluster(1, consul=False, containerd=[None])[0]
    table = "grpc.v1.cri" if version.startswith("1") else "cri.v1.images"
    tls = f'[plugins."io.containerd.{table}".registry.configs."reg.example.com".tls]\nca_file = "/ca.pem"\n'
    daemon = node.add_containerd(version, extra=tls)
    if status == "ok":
        daemon.await_ready()
    else:
        process = daemon.running()
        process.until(lambda: "cannot be set when `config_path`" in process.log(), timeout=20, what="the CRI is off")
    report = preflight(node, "--bootstrap-kind=static", "--runtime=containerd")
    assert report["config-path"] == status, report.says("config-path")
    assert ("does not start" in report.says("config-path")) is (status == "fail")


def test_a_sidecar_that_nobody_could_reach_does_not_start(cluster: MakeCluster) -> None:
    lab = cluster(1, consul=False)
    node = lab[0]
    node.netns.ip("link", "add", "docker0", "type", "bridge")
    node.netns.ip("addr", "add", "172.17.0.1/16", "dev", "docker0")
    for address, reason in (("172.17.0.1", "belongs to docker0"), ("127.0.0.1", "is loopback")):
        flags = {"static_bootstrap_peers": f"{node.ip}:5001", "advertise_addr": address}
        sidecar = node.start_sidecar(wait=False, **flags)
        assert sidecar.process.wait(20) == 1
        sidecar.stopped = True
        lines = sidecar.log().splitlines()
        assert len(lines) == 1, lines
        assert reason in lines[0]
        assert "--advertise-addr" in lines[0]
        sidecar.process.log_path.unlink()
    sidecar = node.start_sidecar(**flags, skip_preflight=True)
    assert '"preflight"' not in sidecar.log()
    assert sidecar.stop() == 0

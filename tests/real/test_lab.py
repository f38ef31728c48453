# If one of these fails, what the other tests with real parts say about the product means nothing.

"""The lab keeps its promises, without the product."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lab import parts, run_dir
from lab.cluster import Cluster, MakeCluster, Node
from lab.consul import ConsulOptions, await_member
from lab.containerd import PullError
from lab.image import MIB, MakeImage, build
from lab.netns import NETNS_DIR
from lab.process import Failed, Process, is_running, until, within
from lab.sidecar import Flag, arguments

pytestmark = pytest.mark.real

TESTS = str(Path(__file__).parents[1])
NOBODY_LISTENS = "http://127.0.0.1:5000"


# --- network


def test_nodes_reach_each_other_and_nobody_else(cluster: MakeCluster) -> None:
    lab = cluster(2, consul=False, containerd=None)
    assert lab[0].netns.ping(lab[1].ip)
    with within(2, "what can't work fails at once"):
        with pytest.raises(ConnectionRefusedError):
            lab[0].netns.connect("192.0.2.1", 443)
        with pytest.raises(Failed):
            lab[0].netns.run("getent", "hosts", "registry.example.org")


def test_the_route_out_tells_a_nodes_address(cluster: MakeCluster) -> None:
    lab = cluster(1, consul=False, containerd=None)
    assert "src 198.51.100.10" in lab[0].netns.ip("route", "get", "192.0.2.1")


def test_a_partition_cuts_what_it_says_and_heals(cluster: MakeCluster) -> None:
    a, b, c = cluster(3, consul=False, containerd=None)
    a.port.drop(b.ip)
    assert not a.netns.ping(b.ip, timeout=0.3)
    assert a.netns.ping(c.ip)
    a.port.heal()
    assert a.netns.ping(b.ip)
    a.port.link_down()
    assert not c.netns.ping(a.ip, timeout=0.3)
    a.port.link_up()
    until(lambda: c.netns.ping(a.ip), timeout=10, what="the link is up again")


def test_a_port_can_be_reset_or_silent(cluster: MakeCluster) -> None:
    lab = cluster(2, consul=False, containerd=None)
    a, b = lab
    port = 8000
    server = a.netns.start(
        "httpd", [parts.busybox(), "httpd", "-f", "-p", f"{a.ip}:{port}"], log_path=lab.dir / "h.log"
    )
    server.until(lambda: _accepts(b, a, port), timeout=5, what="it listens")
    a.port.reset_port(port)
    with pytest.raises(ConnectionRefusedError):
        b.netns.connect(a.ip, port)
    a.port.heal()
    a.port.drop_port(port)
    with pytest.raises(TimeoutError):
        b.netns.connect(a.ip, port, timeout=0.2)
    server.kill9()


def _accepts(client: Node, server: Node, port: int) -> bool:
    try:
        client.netns.connect(server.ip, port).close()
    except OSError:
        return False
    return True


# --- processes


def test_a_processs_pid_is_the_programs_own(cluster: MakeCluster) -> None:
    lab = cluster(1, consul=False, containerd=None)
    process = lab[0].netns.start("sleep", ["sleep", "60"], log_path=lab.dir / "s.log", private_mounts=True)
    until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", timeout=5, what="exec")
    process.pause()
    until(lambda: "State:\tT" in Path(f"/proc/{process.pid}/status").read_text(), timeout=5, what="it hangs")
    assert process.stop() == -15, "also one that is paused hears SIGTERM"
    assert not is_running(process.pid)


def test_a_dead_process_is_not_waited_for(tmp_path: Path) -> None:
    process = Process("liar", ["sh", "-c", "echo no such luck; exit 3"], log_path=tmp_path / "x.log")
    with pytest.raises(Failed, match=r"status 3 before: a miracle\n(.*\n)*no such luck"):
        process.until(lambda: False, timeout=30, what="a miracle")


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    process = Process("deaf", ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"], log_path=log)
    process.until(lambda: "deaf" in process.log(), timeout=5, what="it is deaf")
    assert process.stop(timeout=0.2) == -9


# --- Consul


def test_a_consul_cluster_forms_and_answers(cluster: MakeCluster) -> None:
    lab = cluster(3, containerd=None)
    assert lab[2].consul.kv_get("spegel/none") is None
    assert lab[1].consul.kv_put("spegel/x", b"1")
    assert lab[2].consul.kv_get("spegel/x") == b"1"
    assert lab[2].consul.cli("kv", "get", "spegel/x") == "1\n"
    lab[1].consul.put("/v1/agent/service/register", {"Name": "web", "Address": lab[1].ip, "Port": 80})
    assert [entry["Service"]["Address"] for entry in lab[2].consul.instances("web")] == [lab[1].ip]
    assert lab[0].dig("web.service.consul") == [lab[1].ip]


def test_consuls_options_are_in_force(cluster: MakeCluster) -> None:
    options = ConsulOptions(servers=3, fast_gossip=True, session_ttl_min="2s", acl=True)
    lab = cluster(4, consul=options, containerd=None)
    session = lab[3].consul.put("/v1/session/create", {"TTL": "2s"})["ID"]
    assert lab[3].consul.request("PUT", "/v1/kv/spegel/lock", b"me", query={"acquire": session}) is True
    entry = lab[3].consul.kv_entry("spegel/lock")
    assert entry is not None
    assert entry["Session"] == session
    assert lab[3].request("/v1/kv/spegel/lock", port=8500).status == 403, "no token, no entry"
    lab[3].consul.running().pause()
    await_member(lab[0].consul, "n3", alive=False)
    lab[3].consul.running().resume()
    await_member(lab[0].consul, "n3", alive=True)


# --- containerd and Docker


@pytest.mark.parametrize("version", parts.CONTAINERDS)
def test_containerd_imports_and_pulls_past_a_dead_mirror(cluster: MakeCluster, image: MakeImage, version: str) -> None:
    lab = cluster(2, consul=False, containerd=[None, version])
    upstream = lab.start_registry(on=0)
    store = lab[1].containerd
    by_kubelet = image("docker.io/library/app:v1")
    by_hand = image("ghcr.io/o/tool:v2")
    imported = image("quay.io/o/local:v3")
    for each in (by_kubelet, by_hand):
        upstream.push(each)
    store.mirror(NOBODY_LISTENS, server=upstream.url)
    store.mirror(NOBODY_LISTENS, server=upstream.url, registry="docker.io")

    store.import_image(imported.tar)
    assert imported.name in store.images()
    assert upstream.requests() == []
    lab[1].crane("validate", "--remote", f"{upstream.host}/o/tool:v2")
    upstream.forget()

    assert store.pull_cri(by_kubelet.name, timeout=20) == by_kubelet.amd64.config
    assert store.labels(by_kubelet.index)["containerd.io/distribution.source.docker.io"] == "library/app"
    assert upstream.requests()[0] == "HEAD /v2/library/app/manifests/v1?ns=docker.io"
    store.pull_ctr(by_hand.name, timeout=20)
    assert upstream.requests().count(f"GET /v2/o/tool/blobs/{by_hand.amd64.layers[1]}?ns=ghcr.io") == 1
    assert by_kubelet.digests | by_hand.digests <= store.content()
    assert store.blob(by_hand.index).read_bytes() == by_hand.blob(by_hand.index).read_bytes()

    store.restart()
    store.remove_image(by_hand.name)
    assert by_hand.index not in store.content()
    with pytest.raises(PullError, match=r"(?s)absent.*end of containerd\.log"):
        store.pull_cri("docker.io/library/absent:v1", timeout=20)


def test_a_pull_from_one_that_hangs_ends_in_time(cluster: MakeCluster) -> None:
    lab = cluster(1, consul=False, containerd="17")
    upstream = lab.start_registry()
    upstream.running().pause()
    lab[0].containerd.mirror(server=upstream.url)
    with within(5, "two pulls with half a second each"):
        with pytest.raises(PullError, match="DEADLINE_EXCEEDED"):
            lab[0].containerd.pull_cri("ghcr.io/o/tool:v2", timeout=0.5)
        with pytest.raises(PullError, match=r"no end after 0\.5 s"):
            lab[0].containerd.pull_ctr("ghcr.io/o/tool:v2", timeout=0.5)


@pytest.mark.parametrize("version", parts.DOCKERS)
def test_docker_pulls_through_its_registry_configuration(cluster: MakeCluster, image: MakeImage, version: str) -> None:
    lab = cluster(1, consul=False, containerd=None)
    upstream = lab.start_registry()
    what = image("ghcr.io/o/tool:v2") if version == "28" else image("docker.io/library/app:v1")
    upstream.push(what)
    docker = lab[0].add_docker(version, mirrors=[upstream.url])
    docker.mirror(NOBODY_LISTENS, server=upstream.url)  # 26 doesn't read this, and mirrors are for docker.io only
    docker.await_ready()
    docker.pull(what.name, timeout=30)
    assert docker.images() == [what.name.removeprefix("docker.io/library/")]
    assert f"GET /v2/{what.repository}/manifests/{what.index}?ns={what.registry}" in upstream.requests()
    assert what.digests <= docker.content()
    assert (docker.content_path / "blobs" / what.index.replace(":", "/")).is_file()
    assert docker.docker("run", "--rm", "--network", "none", what.name) == "hello\n"
    with pytest.raises(PullError, match=r"end of dockerd\.log"):
        docker.pull("docker.io/library/absent:v1", timeout=20)
    assert not any(Path("/etc/docker").glob("certs.d/_default")), "the machine's own configuration is untouched"


# --- images, the product's arguments, and what is missing


def test_an_image_is_the_same_each_time(tmp_path: Path) -> None:
    first = build(tmp_path / "a", "docker.io/library/app:v1", [MIB, 5], seed=7)
    again = build(tmp_path / "b", "docker.io/library/app:v1", [MIB, 5], seed=7)
    other = build(tmp_path / "c", "docker.io/library/app:v1", [MIB, 5], seed=8)
    assert (first.index, first.amd64, first.arm64) == (again.index, again.amd64, again.arm64)
    assert first.amd64.layers[0] == other.amd64.layers[0], "all share busybox"
    assert not set(first.amd64.layers[1:]) & set(other.amd64.layers)
    assert first.tar.read_bytes() == again.tar.read_bytes()
    assert (first.registry, first.repository, first.tag) == ("docker.io", "library/app", "v1")


def test_flags_become_arguments() -> None:
    flags: dict[str, Flag] = {
        "log_level": "debug",
        "data_dir": Path("/x"),
        "dry": True,
        "wet": False,
        "gone": None,
        "peer": ["a", "b"],
    }
    assert arguments(flags) == ["--log-level", "debug", "--data-dir", "/x", "--dry", "--peer", "a", "--peer", "b"]


def test_missing_parts_are_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"run \.ci/install-real-parts"):
        parts.check()


# --- the end


def test_nothing_is_left_when_a_test_fails() -> None:
    pids: list[int] = []
    lab = Cluster(2, consul=True, containerd="21")
    with pytest.raises(ZeroDivisionError), lab:
        _populate(lab, pids)
    assert len(pids) == 2 + 2 + 1 + 2, "consul, containerd, the registry, dockerd with its containerd"
    assert not [pid for pid in pids if is_running(pid)]
    assert not [node for node in lab if node.netns.path.exists()]
    assert not lab.dir.exists()
    assert str(lab.dir) not in Path("/proc/self/mountinfo").read_text()


def _populate(lab: Cluster, pids: list[int]) -> None:
    lab.start_registry()
    lab[0].add_docker().await_ready()
    pids += [pid for node in lab for pid in node.netns.pids()]
    raise ZeroDivisionError


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    script = "import os, time; from lab.cluster import Cluster; lab = Cluster(1, containerd=None).__enter__()"
    script += "; print(lab[0].netns.name, lab[0].consul.running().pid, lab.dir, flush=True); time.sleep(60)"
    killed = Process("killed", [sys.executable, "-c", script], log_path=tmp_path / "x.log", env={"PYTHONPATH": TESTS})
    killed.until(lambda: killed.log().endswith("\n"), timeout=20, what="its lab is up")
    name, consul, directory = killed.log().split()
    killed.kill9()
    assert is_running(int(consul))
    assert name in [space.name for space in run_dir.left_behind()[0]]
    run_dir.sweep()
    assert not is_running(int(consul))
    assert not Path(directory).exists()
    assert not any(NETNS_DIR.glob(name))

# The upstream sends at a rate, so the nodes' pulls overlap and the later ones follow the first one.

"""One command has the runtimes of all nodes pull an image, and the upstream is asked once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab.cluster import Node
from lab.cold_start import ColdStart, metric, runtime, size_of
from lab.image import MIB, Image, is_whole
from lab.process import HANG, ending, until, with_sigint

pytestmark = pytest.mark.real

LAYERS = [6 * MIB, 3 * MIB]
UPSTREAM = 50  # Mbit/s: 1.6 s for one copy
FLAGS = {"preheat": "peers", "follow": "on", "verify_first": "8MiB"}


def preheat(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    argv = node.netns.inside([sys.executable, "-m", "spegel_consul", "preheat", *words])
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(argv, capture_output=True, text=True, timeout=HANG, check=False, env=environment)


def has(node: Node, image: Image) -> bool:
    return all(is_whole(runtime(node).content_path, digest) for digest in image.digests)


def test_the_image_is_on_all_nodes_and_left_the_upstream_once() -> None:
    with ColdStart(["1.6", "1.7", "2.1", "docker28"], upstream_mbit=UPSTREAM) as cold:
        cold.start_sidecars(**FLAGS)
        image = cold.image(LAYERS)
        cold.upstream.forget()
        sent = cold.lab[0].port.sent_bytes()
        done = preheat(cold.nodes[0], "--json", image.name)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert [node["state"] for node in found["nodes"]] == ["done"] * 4
        runtimes = {each["runtime"]: each for node in found["nodes"] for each in node["runtimes"]}
        assert set(runtimes) == {"containerd k8s.io", "docker"}
        assert {each["bytes"] for each in runtimes.values()} == {sum(size_of(image).values())}
        for node in cold.nodes:
            assert has(node, image)
            assert metric_of_mirror(node) > 0, "the runtime asked its mirror"
        assert (cold.lab[0].port.sent_bytes() - sent) / sum(size_of(image).values()) < 1.3

        few = cold.image(LAYERS)
        done = preheat(cold.nodes[0], "--nodes", "2", "--json", few.name)
        assert (done.returncode, done.stderr) == (0, "")
        states = [node["state"] for node in json.loads(done.stdout)["nodes"]]
        assert states.count("done") == sum(has(node, few) for node in cold.nodes) == 2

        absent = f"{cold.upstream.host}/library/absent:v1"
        nowhere = preheat(cold.nodes[0], absent)
        assert nowhere.returncode == 4
        assert nowhere.stderr == f"spegel-consul: no registry has {absent}\n"
        assert nowhere.stdout.count("not found") == 4

        elsewhere = preheat(cold.nodes[0], image.name, "--node", f"{cold.nodes[1].ip}:9090")
        assert elsewhere.returncode == 1
        assert "on the machine of the sidecar" in elsewhere.stderr


def test_ctrl_c_ends_the_pulls_and_a_node_that_dies_is_a_row() -> None:
    with ColdStart(["2.1", "2.1", "2.1"], upstream_mbit=8) as cold:
        cold.start_sidecars(**FLAGS)
        image = cold.image(LAYERS)
        argv = [sys.executable, "-m", "spegel_consul", "preheat", "--all", image.name]
        began = subprocess.Popen(
            cold.nodes[0].netns.inside(argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=with_sigint
        )
        with ending(began):
            until(lambda: all(is_pulling(node) for node in cold.nodes), timeout=20, what="all nodes pull")
            began.send_signal(signal.SIGINT)
            assert began.wait(HANG) == 130
        for node in cold.nodes:
            until(lambda node=node: "preheat cancelled" in node.sidecar.log(), timeout=20, what=f"{node} cancelled")
        began = subprocess.Popen(
            cold.nodes[0].netns.inside(argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with ending(began):
            until(lambda: cold.nodes[2].sidecar.log().count('"preheat"') == 2, timeout=20, what="the third node pulls")
            cold.nodes[2].sidecar.kill9()
            output, errors = began.communicate(timeout=HANG)
        assert began.returncode == 1
        assert errors == f"spegel-consul: 1 of 3 nodes do not have {image.name}\n"
        assert output.count("done") == 2
        for node in cold.nodes[:2]:
            assert has(node, image)
            assert "Traceback" not in node.sidecar.log()


def test_a_runtime_that_would_pass_by_the_mirror_says_so() -> None:
    with ColdStart(["1.7", "2.1"], upstream_mbit=1000) as cold:
        cold.start_sidecars(**FLAGS, containerd_namespace="default")
        image = cold.image([MIB])
        done = preheat(cold.nodes[0], image.name)
        assert done.returncode == 1
        assert "the transfer API of containerd 1.7" in done.stdout
        assert "does not ask the mirror: that needs 2.0\n" in done.stdout
        assert done.stderr == f"spegel-consul: 1 of 2 nodes do not have {image.name}\n"
        assert image.name in cold.nodes[1].containerd.images(namespace="default")
        assert metric_of_mirror(cold.nodes[1]) > 0


def test_peers_prove_the_password_and_are_named_by_the_catalog(cluster, image, tmp_path: Path) -> None:
    lab = cluster(3)
    app = image(layers=[MIB])
    files = [tmp_path / name for name in ("users", "users", "others")]
    (tmp_path / "users").write_text("spegel:secret\n")
    (tmp_path / "others").write_text("spegel:another\n")
    for node, file in zip(lab, files, strict=True):
        node.start_sidecar(wait=False, basic_auth_file=file, preheat="peers")
        node.configure(f"--basic-auth-file={file}")
    for node in lab:
        node.sidecar.await_ready()
    lab[0].containerd.import_image(app.tar)
    for node in lab:
        node.sidecar.process.until(
            lambda node=node: metric(node, "spegel_ring_members") == 2, timeout=20, what=f"{node} knows all members"
        )
    until(lambda: len(lab[0].consul.instances("spegel-metrics")) == 3, timeout=20, what="the catalog has all")
    images = lambda: json.loads(lab[0].request("/api/images", port=9090).body)  # noqa: E731
    until(lambda: app.name in [each["name"] for each in images()], timeout=20, what="the sidecar knows the image")
    done = preheat(lab[0], app.name)
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["n0", "n1", "n2"]
    assert [row[3] for row in rows[:2]] == ["done", "done"], done.stdout
    assert "the image was here before" in done.stdout.splitlines()[1]
    assert "the sender proves another password" in done.stdout.splitlines()[3]
    assert done.returncode == 1
    assert app.digests <= lab[1].containerd.content()
    assert app.name not in lab[2].containerd.images()
    assert "secret" not in "".join(node.sidecar.log() for node in lab)


def is_pulling(node: Node) -> bool:
    return metric(node, "spegel_ring_members") > 0 and '"preheat"' in node.sidecar.log()


def metric_of_mirror(node: Node) -> float:
    lines = node.sidecar.metrics().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("spegel_mirror_requests_total{"))

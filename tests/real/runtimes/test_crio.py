# CRI-O is named by the environment: there is no package of it to install, so CI does not run this test.

"""CRI-O, which the product's own command points at the mirror, pulls as kubelet asks it to: `make crio`."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.cluster import MakeCluster, Node
from lab.cri import CriError
from lab.crio import Crio
from lab.image import MakeImage
from lab.neighbours import Neighbours, content

pytestmark = pytest.mark.real


def preflight(crio: Crio) -> dict[str, str]:
    """The status of each check."""
    words = ["preflight", "--json", "--runtime=crio", "--bootstrap-kind=static", "--layout-path=/images"]
    argv = crio.enter([sys.executable, "-m", "spegel_consul", *words])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (0, 1), done.stderr
    return {check["name"]: check["status"] for check in json.loads(done.stdout)}


def test_crio_pulls_through_the_mirror_that_was_configured(
    cluster: MakeCluster, image: MakeImage, tmp_path: Path, daemons: ExitStack
) -> None:
    made = Neighbours.make(cluster, image, tmp_path)
    lab, whole, partial, upstream = made.lab, made.whole, made.partial, made.upstream
    one, two = lab
    crios: dict[str, Crio] = {}
    before: dict[str, dict[str, bytes]] = {}
    for node in lab:
        crio = crios[node.name] = Crio(node.port, node.dir / "crio", watches=node is one)
        (crio.etc / "registries.conf").write_text(made.registries_conf)
        before[node.name] = content(crio.etc)
        daemons.callback(crio.stop)
        crio.start()
    made.start_sidecars()

    def pulled(node: Node, name: str) -> set[str]:
        """What upstream was asked for: tags and digests."""
        upstream.forget()
        crios[node.name].pull(name)
        crios[node.name].remove(name)
        asked = [each for each in upstream.requests() if "/manifests/" in each or "/blobs/" in each]
        return {each.rpartition("/")[2] for each in asked}

    # it reads the files at its start, and again after a reload or, if it is told to, after each change
    reads = crios[one.name].reads()
    for node, crio in zip(lab, crios.values(), strict=True):
        node.configure("--runtime=crio", "--mirrored-registries=ghcr.io", f"--containers-config-path={crio.etc}")
    assert {whole.tag, *whole.amd64.layers} <= pulled(two, whole.name)
    assert {agent.partition("/")[0] for agent in upstream.user_agents()} == {"cri-o"}
    crios[two.name].reload()
    crios[one.name].await_reads(reads + 1)
    assert set(preflight(crios[two.name]).values()) == {"ok"}

    assert pulled(two, whole.name) == set()
    # the neighbour lacks a layer, so its manifest is unknown and all of it comes from upstream
    assert pulled(one, partial.name) >= {*partial.amd64.digests} - {partial.amd64.manifest}
    # without a sidecar all comes from upstream
    assert two.sidecar.stop() == 0
    assert {whole.tag, *whole.amd64.layers} <= pulled(two, whole.name)
    assert preflight(crios[two.name])["crio-mirrors"] == "fail"

    # the files are as before, and CRI-O asks upstream only
    reads = crios[one.name].reads()
    for node in lab:
        node.spegel("cleanup", *node.places, f"--containers-config-path={crios[node.name].etc}")
        assert content(crios[node.name].etc) == before[node.name]
    crios[one.name].await_reads(reads + 1)
    assert {whole.tag, *whole.amd64.layers} <= pulled(one, whole.name)
    upstream.running().kill9()
    with pytest.raises(CriError, match="connection refused"):
        crios[one.name].pull(whole.name)

"""buildx with the driver docker-container, by the documentation's commands: `make buildkit`."""

from __future__ import annotations

import re
import shlex
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path

import pytest
from lab.buildx import Buildx
from lab.cluster import Cluster, MakeCluster, Node
from lab.documents import ROOT
from lab.image import MakeImage
from lab.neighbours import Neighbours
from lab.network import SUBNET

pytestmark = pytest.mark.real

_CONTAINERS = list(ip_network(SUBNET).subnets())[1]
_SECTION = re.compile(r"^## buildx with the driver docker-container\n(.*?)^## ", re.M | re.S)


def connected(node: Node, lab: Cluster) -> str:
    """The address of a bridge on ``node`` whose containers the other nodes reach, so no address need be translated."""
    subnet = list(_CONTAINERS.subnets(new_prefix=28))[node.index]
    for other in lab:
        if other is not node:
            other.netns.ip("route", "add", str(subnet), "via", node.ip)
    return f"{subnet[1]}/{subnet.prefixlen}"


def documented(node: Node, config: Path, *, on_host: bool) -> tuple[list[str], list[str]]:
    """The words after ``spegel-consul`` and ``docker buildx create`` for this node and this file.

    With ``on_host`` for a builder with the node's network, whose file is that of a BuildKit on the node.
    """
    (section,) = _SECTION.findall((ROOT / "docs/buildkit.md").read_text())
    section = section.replace("\\\n", " ").replace("10.0.0.7", node.ip)
    section = section.replace("/etc/spegel/buildx/buildkitd.toml", str(config))
    (configure,) = re.findall(r"^spegel-consul (configuration .*)$", section, re.M)
    (create,) = re.findall(r"^docker buildx create (.*)$", section, re.M)
    if on_host:
        configure = re.sub(r"--mirror-targets \S+", "", configure)
        create += " " + re.findall(r"`(--driver-opt network=host)`", section)[0]
    return shlex.split(configure), shlex.split(create)


@pytest.mark.parametrize("on_host", [False, True])
def test_a_builder_takes_its_base_through_the_mirror(
    cluster: MakeCluster, image: MakeImage, tmp_path: Path, daemons: ExitStack, on_host: bool
) -> None:
    made = Neighbours.make(cluster, image, tmp_path)
    lab, whole, partial, upstream = made.lab, made.whole, made.partial, made.upstream
    one, two = lab
    before = made.buildkitd_toml
    kits: dict[str, Buildx] = {}
    configs: dict[str, Path] = {}
    for node in lab:
        docker = node.add_docker("28", bridge=connected(node, lab))
        config = configs[node.name] = node.dir / "buildx/buildkitd.toml"
        config.parent.mkdir()
        config.write_text(before)
        kit = kits[node.name] = Buildx(docker, node.dir / "bx")
        daemons.callback(kit.end)
    for node in lab:
        node.docker.await_ready()
        kits[node.name].load_image()
    made.start_sidecars()

    def built(node: Node, name: str) -> set[str]:
        """The blobs that upstream was asked for."""
        directory = tmp_path / node.name
        directory.mkdir(exist_ok=True)
        (directory / "Dockerfile").write_text(f"FROM {name}\nLABEL built=yes\nCOPY Dockerfile /\n")
        upstream.forget()
        kits[node.name].build(directory)
        return {digest for _, digest in upstream.blob_requests()}

    creates: dict[str, list[str]] = {}
    for node in lab:
        configure, create = documented(node, configs[node.name], on_host=on_host)
        node.spegel(*configure, *node.places)
        creates[node.name] = create
        kits[node.name].create(*create)
    assert built(two, whole.name) == set()
    assert not [request for request in upstream.requests() if "/manifests/" in request]
    # each blob is asked for by itself, so upstream is asked for the one layer that the neighbour lacks
    assert built(one, partial.name) == {partial.amd64.layers[1]}

    # a new builder, which has nothing, takes all from upstream while there is no mirror
    kits[two.name].remove()
    kits[two.name].create(*creates[two.name])
    assert two.sidecar.stop() == 0
    assert set(whole.amd64.layers) <= built(two, whole.name)
    for node in lab:
        node.spegel("cleanup", *node.places, f"--buildkitd-config={configs[node.name]}")
        assert configs[node.name].read_text() == before

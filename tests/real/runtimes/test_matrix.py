# Each runtime is a fresh one that our own command points at its node's sidecar, and each wants an image that nobody but
# a neighbour has: there is no upstream to fall back to.

"""Every runtime that we know, configured by us, pulls what only a neighbour has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab.cluster import Cluster, MakeCluster, Node
from lab.containerd import PullError
from lab.image import MIB, Image, MakeImage
from lab.process import until

pytestmark = pytest.mark.real

NAMES = ["docker.io/library/app:v1", "ghcr.io/team/tool:v2", "quay.io/team/other:v3"]
LAYERS = [12 * MIB, MIB]
PARALLEL = """
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 4
  concurrent_layer_fetch_buffer = 8388608
"""


@pytest.fixture
def images(image: MakeImage) -> list[Image]:
    return [image(name, layers=LAYERS, seed=number) for number, name in enumerate(NAMES)]


@pytest.fixture
def lab(cluster: MakeCluster, images: list[Image]) -> Iterator[Cluster]:
    """Two nodes, of which the first has the images and its sidecar; the second gets its runtime from the test."""
    lab = cluster(2, consul=False, containerd=["21", None])
    for image in images:
        lab[0].containerd.import_image(image.tar, all_platforms=True)
    start_sidecar(lab, lab[0])
    yield lab
    for node in lab:
        assert "Traceback" not in node.sidecar.log()


def start_sidecar(lab: Cluster, node: Node) -> None:
    node.start_sidecar(static_bootstrap_peers=f"{lab[0].ip}:5001,{lab[1].ip}:5001")


def await_images(lab: Cluster, images: list[Image]) -> None:
    for image in images:
        path = f"/v2/{image.repository}/manifests/{image.tag}?ns={image.registry}"
        until(lambda path=path: lab[1].request(path).status == 200, timeout=20, what=f"the neighbour's {path} is found")


@pytest.mark.parametrize(("version", "extra"), [("16", ""), ("17", ""), ("21", ""), ("21", PARALLEL)])
def test_containerd(lab: Cluster, images: list[Image], version: str, extra: str) -> None:
    node = lab[1]
    node.add_containerd(version, extra=extra).await_ready()
    start_sidecar(lab, node)
    await_images(lab, images)
    assert "wrote" in node.configure("--runtime=containerd", "--mirrored-registries=_default,docker.io")
    for image in images[:2]:
        node.containerd.pull_cri(image.name)
        assert image.digests <= node.containerd.content()
    node.containerd.pull_ctr(images[2].name)
    assert images[2].digests <= node.containerd.content()

    for image in images[:2]:
        node.containerd.remove_image(image.name)
    node.spegel("cleanup", *node.places)
    assert list(node.containerd.certs_d.iterdir()) == []
    with pytest.raises(PullError):
        node.containerd.pull_cri(images[0].name, timeout=20)


def test_docker_28_with_certs_d(lab: Cluster, images: list[Image]) -> None:
    node = lab[1]
    node.add_docker("28", insecure=()).await_ready()
    start_sidecar(lab, node)
    await_images(lab, images)
    node.configure(f"--docker-sock={node.docker.sock}", "--mirrored-registries=docker.io,ghcr.io,_default")
    assert {path.parent.name for path in node.docker.certs_d.glob("*/hosts.toml")} == {
        "docker.io",
        "ghcr.io",
        "_default",
    }
    for image in images:
        node.docker.pull(image.name)
        assert image.digests <= node.docker.content()
    assert sorted(node.docker.images()) == ["app:v1", "ghcr.io/team/tool:v2", "quay.io/team/other:v3"]


@pytest.mark.parametrize("version", ["26", "28"])
def test_docker_with_daemon_json(lab: Cluster, images: list[Image], version: str) -> None:
    node = lab[1]
    docker = node.add_docker(version, fresh=True)
    docker.await_ready()
    before = docker.config.read_bytes()
    node.configure("--runtime=docker-daemon")
    docker.restart()
    start_sidecar(lab, node)
    await_images(lab, images)
    docker.pull(images[0].name)
    assert images[0].digests <= docker.content()
    with pytest.raises(PullError):  # only docker.io has mirrors there
        docker.pull(images[1].name, timeout=20)
    node.spegel("cleanup", *node.places)
    assert docker.config.read_bytes() == before


def test_docker_26_without_the_image_store(lab: Cluster, images: list[Image]) -> None:
    node = lab[1]
    docker = node.add_docker("26", fresh=True)
    docker.await_ready()
    node.configure("--runtime=docker-daemon", "--containerd-snapshotter=false")
    docker.restart()
    start_sidecar(lab, node)
    await_images(lab, images)
    docker.pull(images[0].name)
    assert docker.images() == ["app:v1"]
    assert docker.content().isdisjoint(images[0].amd64.layers)

# The second node pulls, with the runtime under test. The third hangs; the first one lies about one image, and upstream
# has all of them.
#
# A blob up to --verify-first is sent when it is known to be right, so a liar costs no pull.  Of a larger one the mirror
# holds back the end and cuts the connection; the runtime asks for the rest, by range, of whom it can, puts it behind
# the wrong bytes that it has, and fails the pull when it compares the digest.  No mirror can take bytes back.  So that
# pull fails, at once; the next one succeeds, because the liar is not asked any more - as soon as the runtime's garbage
# collection has taken the wrong bytes, which it needs a moment for.

"""Pulls end well, and soon, whatever a neighbour or the own sidecar does."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import pytest
from lab import thorough
from lab.cluster import Cluster, MakeCluster, Node
from lab.docker_io import DockerIo
from lab.image import MIB, Image, MakeImage
from lab.process import HANG, until, within
from lab.registry import Registry

pytestmark = pytest.mark.real

LAYERS = [8 * MIB, MIB]
ALL_RUNTIMES = ["containerd16", "containerd17", "containerd21", "docker26", "docker28"]
RUNTIMES = ALL_RUNTIMES if thorough.ALL else ["containerd17", "docker28"]
SOON = 10.0
"""Seconds: 1 to connect, 2 to the first byte, 5 of silence, and the pull itself."""


def soon(what: str) -> AbstractContextManager[None]:
    return within(SOON, what)


@pytest.fixture
def image_of(image: MakeImage) -> MakeImage:
    return lambda name: image(name, layers=LAYERS, seed=sum(name.encode()))


@pytest.fixture
def docker_io(lab: Cluster) -> DockerIo:
    return lab.start_docker_io()


@pytest.fixture
def lab(cluster: MakeCluster) -> Cluster:
    return cluster(3, consul=False, containerd=["21", None, "21"])


@pytest.fixture(params=RUNTIMES)
def node(request: pytest.FixtureRequest, lab: Cluster, docker_io: DockerIo) -> Node:
    """The node that pulls, with its runtime configured as we do it."""
    node, kind, version = lab[1], request.param[:-2], request.param[-2:]
    if kind == "containerd":
        node.add_containerd(version, docker_io=docker_io).await_ready()
        node.configure("--runtime=containerd")
    else:
        docker = node.add_docker(version, fresh=True, docker_io=docker_io)
        docker.await_ready()
        node.configure("--runtime=docker", "--runtime=docker-daemon")
        docker.restart()
    return node


def start(lab: Cluster) -> None:
    everybody = ",".join(f"{node.ip}:5001" for node in lab)
    for node in lab:
        node.start_sidecar(wait=False, static_bootstrap_peers=everybody, hang_timeout="0s")
    for node in lab:
        node.sidecar.await_ready()


def await_found(node: Node, image: Image) -> None:
    path = f"/v2/{image.repository}/manifests/{image.tag}?ns={image.registry}"
    until(lambda: node.request(path).status == 200, timeout=20, what=f"{path} is found")


def pull(node: Node, image: Image) -> set[str]:
    if node.has_docker:
        node.docker.pull(image.name, timeout=60)
        return node.docker.content()
    node.containerd.pull_cri(image.name, timeout=60)
    return node.containerd.content()


def spoil(node: Node, digest: str) -> None:
    """Flip one bit in the middle of what the node has under ``digest``."""
    file = node.containerd.blob(digest)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def test_a_neighbour_that_hangs_one_that_lies_and_a_dead_sidecar(
    lab: Cluster, node: Node, docker_io: DockerIo, image_of: MakeImage
) -> None:
    upstream = docker_io.registry
    names = ("hung", "lied", "later", "corrected")
    hung, lied, later, corrected = (image_of(f"docker.io/library/{name}:v1") for name in names)
    for image in (hung, lied, later):
        upstream.push(image)
    holders = ((lab[0], hung), (lab[2], hung), (lab[0], lied), (lab[0], corrected), (lab[2], corrected))
    for neighbour, image in holders:
        neighbour.containerd.import_image(image.tar)
    for image in (lied, corrected):
        for layer in image.amd64.layers[1:]:
            spoil(lab[0], layer)
    start(lab)
    for image in (hung, lied, corrected):
        await_found(node, image)
    upstream.forget()

    lab[2].sidecar.pause()
    with soon("with a neighbour that hangs"):
        assert hung.digests <= pull(node, hung)
    assert blobs(upstream) == set()
    lab[2].sidecar.resume()

    with soon("with a neighbour that lies"):
        assert lied.digests <= pull(node, lied)
    assert set(lied.amd64.layers[1:]) <= blobs(upstream)
    assert "peer sent wrong bytes" in node.sidecar.log()
    upstream.forget()

    assert node.sidecar.stop() == 0
    node.start_sidecar(static_bootstrap_peers=f"{lab[0].ip}:5001,{lab[2].ip}:5001")  # it has forgotten who lied
    await_found(node, corrected)
    with soon("with a neighbour that lies and one that does not"):  # upstream has none of it
        assert corrected.digests <= pull(node, corrected)
    assert blobs(upstream) == set()

    node.sidecar.kill9()
    upstream.forget()
    with soon("without a sidecar"):
        assert later.digests <= pull(node, later)
    assert later.amd64.layers[1] in blobs(upstream)


@pytest.mark.parametrize("node", [each for each in RUNTIMES if each != "docker26"], indirect=True)
def test_the_own_sidecar_hangs(lab: Cluster, node: Node, docker_io: DockerIo, image_of: MakeImage) -> None:
    app = image_of("docker.io/library/app:v1")
    docker_io.registry.push(app)
    sidecar = node.start_sidecar(static_bootstrap_peers=f"{lab[0].ip}:5001", hang_timeout="2s")
    assert sidecar.pid != sidecar.process.pid
    time.sleep(3)  # it is let live as long as it beats
    sidecar.pause()
    with soon("with a sidecar that hangs"):
        assert app.digests <= pull(node, app)
    assert sidecar.process.wait(HANG) == 1
    sidecar.stopped = True
    assert "the sidecar has not moved for 2 s" in sidecar.log()


def blobs(registry: Registry) -> set[str]:
    """Blobs that were asked of the upstream."""
    paths = (request.split()[1].partition("?")[0] for request in registry.requests())
    return {path.rpartition("/")[2] for path in paths if "/blobs/" in path}

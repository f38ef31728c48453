"""podman and Buildah, which the product's own command points at the mirror. They take an image from one source."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import parts
from lab.cluster import MakeCluster, Node
from lab.image import MakeImage
from lab.neighbours import Neighbours, content
from lab.podman import Podman
from lab.process import Failed

pytestmark = pytest.mark.real


def test_podman_pulls_through_the_mirror_that_was_configured(
    cluster: MakeCluster, image: MakeImage, tmp_path: Path
) -> None:
    made = Neighbours.make(cluster, image, tmp_path)
    lab, whole, partial, upstream = made.lab, made.whole, made.partial, made.upstream
    one, two = lab
    podmans: dict[str, Podman] = {}
    before: dict[str, dict[str, bytes]] = {}
    for node in lab:
        podman = podmans[node.name] = Podman(node.port, node.dir / "podman")
        (podman.etc / "registries.conf").write_text(made.registries_conf)
        before[node.name] = content(podman.etc)
        node.configure("--runtime=podman", "--mirrored-registries=ghcr.io", f"--containers-config-path={podman.etc}")
    made.start_sidecars()

    def pulled(node: Node, name: str) -> list[str]:
        """What upstream was asked for."""
        upstream.forget()
        podmans[node.name].pull(name)
        return [each for each in upstream.requests() if "/manifests/" in each or "/blobs/" in each]

    assert pulled(two, whole.name) == []
    assert len(podmans[two.name].layers(whole.name)) == len(whole.amd64.layers)
    # the neighbour lacks a layer, so its manifest is unknown and all of it comes from upstream
    asked = pulled(one, partial.name)
    assert {each.rpartition("/")[2] for each in asked} >= {*partial.amd64.digests} - {partial.amd64.manifest}

    # clients without mirrors name the registry in the path, and get the image of a neighbour too
    in_path = f"{two.ip}:5000/{whole.name}"
    two.crane("validate", "--remote", in_path)
    skopeo = [parts.system("skopeo"), "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    two.netns.run(*skopeo, f"docker://{in_path}", f"dir:{tmp_path / 'copied'}")
    podmans[two.name].podman("pull", "--quiet", "--tls-verify=false", in_path)

    # a build takes its base by the same file
    (tmp_path / "Containerfile").write_text(f"FROM {whole.name}\nLABEL built=yes\n")
    upstream.forget()
    podmans[one.name].buildah("build", "--quiet", "--tag", "built", str(tmp_path))
    assert not [each for each in upstream.requests() if "/manifests/" in each or "/blobs/" in each]

    # without the mirror, podman asks upstream, and finds its files as they were
    for node in lab:
        node.spegel("cleanup", *node.places, f"--containers-config-path={podmans[node.name].etc}")
        assert content(podmans[node.name].etc) == before[node.name]
    podmans[two.name].podman("rmi", "--all", "--force")
    assert pulled(two, whole.name) != []
    upstream.running().kill9()
    podmans[two.name].podman("rmi", "--all", "--force")
    with pytest.raises(Failed, match="connection refused"):
        podmans[two.name].pull(whole.name)

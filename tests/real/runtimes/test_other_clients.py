"""Clients that name no registry to their mirrors, and images as other builders write them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from lab import parts
from lab.cluster import MakeCluster, Node
from lab.image import CONFIG, MANIFEST, MIB, Image, MakeImage
from lab.neighbours import Neighbours
from lab.process import Failed, until

pytestmark = pytest.mark.real

_REGISTRIES = """
[[registry]]
prefix = "quay.io"
location = "{upstream}"
insecure = true

[[registry.mirror]]
location = "{mirror}"
insecure = true
"""


def copy(node: Node, name: str, conf: Path, directory: Path) -> dict[str, object]:
    """What skopeo, which reads the registries.conf of podman and CRI-O, gets for ``name``."""
    argv = [parts.system("skopeo"), "--insecure-policy", "--registries-conf", conf, "copy", "--all", "--quiet"]
    node.netns.run(*argv, f"docker://{name}", f"dir:{directory}", timeout=60)
    found: dict[str, object] = json.loads((directory / "manifest.json").read_bytes())
    return found


def manifest_of(image: Image) -> dict[str, object]:
    found: dict[str, object] = json.loads(image.blob(image.index).read_bytes())
    return found


def test_skopeo_gets_no_image_of_another_registry(cluster: MakeCluster, image: MakeImage, tmp_path: Path) -> None:
    lab = cluster(1, consul=False)
    (node,) = lab
    hub, quay = image("docker.io/org/app:v1", layers=[MIB], seed=1), image("quay.io/org/app:v1", layers=[MIB], seed=2)
    upstream = lab.start_registry()
    upstream.push(quay)
    node.containerd.import_image(hub.tar, all_platforms=True)
    node.start_sidecar(static_bootstrap_peers=f"{node.ip}:5001")
    path = f"/v2/{hub.repository}/manifests/{hub.tag}"
    until(lambda: node.request(f"{path}?ns=docker.io").status == 200, timeout=20, what="the image is found")
    conf = tmp_path / "registries.conf"
    conf.write_text(_REGISTRIES.format(upstream=upstream.host, mirror=f"{node.ip}:5000"))

    assert copy(node, quay.name, conf, tmp_path / "by-tag") == manifest_of(quay)
    assert any(f"/manifests/{quay.tag}" in request for request in upstream.requests())

    # a digest is the same content everywhere: the mirror has it, and upstream is not asked
    upstream.forget()
    assert copy(node, f"quay.io/org/app@{hub.index}", conf, tmp_path / "by-digest") == manifest_of(hub)
    assert not [request for request in upstream.requests() if "/manifests/" in request or "/blobs/" in request]

    # containerd's library has HTTP for loopback, so Nomad's containerd driver, which has no mirrors, pulls by the path
    node.containerd.ctr("images", "pull", f"127.0.0.1:5000/{hub.name}", namespace="nomad")
    assert node.containerd.content(namespace="nomad") >= hub.digests

    # with no upstream the pull fails, and says so
    upstream.running().kill9()
    with pytest.raises(Failed, match="manifest unknown|connection refused"):
        copy(node, quay.name, conf, tmp_path / "no-upstream")
    answer = node.request(path, headers={"User-Agent": "skopeo/1.9.3"})
    assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")


_IN_PATH = """
[[registry]]
prefix = "ghcr.io"
location = "{upstream}"
insecure = true

[[registry.mirror]]
location = "{mirror}/ghcr.io"
insecure = true
"""


def test_skopeo_gets_an_image_whole_or_from_upstream(cluster: MakeCluster, image: MakeImage, tmp_path: Path) -> None:
    """The registry is in the mirror's path, as docs/podman.md says. skopeo takes all of an image from one source."""
    made = Neighbours.make(cluster, image, tmp_path)
    lab, whole, partial, upstream = made.lab, made.whole, made.partial, made.upstream
    one, two = lab
    made.start_sidecars()

    def pull(node: Node, name: str, to: str) -> list[str]:
        """What upstream was asked for."""
        conf = tmp_path / f"{to}.conf"
        conf.write_text(_IN_PATH.format(upstream=upstream.host, mirror=f"{node.ip}:5000"))
        upstream.forget()
        argv = [parts.system("skopeo"), "--insecure-policy", "--registries-conf", conf, "copy", "--quiet"]
        node.netns.run(*argv, f"docker://{name}", f"dir:{tmp_path / to}", timeout=60)
        return [each for each in upstream.requests() if "/manifests/" in each or "/blobs/" in each]

    assert pull(two, whole.name, "from-the-neighbour") == []
    assert pull(one, whole.name, "from-the-own-store") == []
    for node in lab:  # one layer is missing, so the manifest is unknown and nothing comes from the mirror
        asked = pull(node, f"ghcr.io/org/partial@{partial.index}", f"from-upstream-{node.name}")
        assert {each.rpartition("/")[2] for each in asked} >= partial.digests


def without_layers(directory: Path, name: str) -> tuple[Path, str]:
    """An archive of an image as Docker 28 builds it from scratch, and the digest of its manifest."""
    blobs: dict[str, bytes] = {}

    def put(media_type: str, document: object) -> dict[str, object]:
        body = json.dumps(document).encode()
        digest = hashlib.sha256(body).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = body
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(body)}

    config = put(CONFIG, {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": None}})
    root = put(MANIFEST, {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": None})
    root["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "v1"}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [root]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    archive = directory / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for path, body in blobs.items():
            member = tarfile.TarInfo(path)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return archive, str(root["digest"])


def test_an_image_without_layers_is_mirrored(cluster: MakeCluster, tmp_path: Path) -> None:
    lab = cluster(2, consul=False)
    owner, other = lab
    archive, digest = without_layers(tmp_path, "docker.io/library/empty:v1")
    owner.containerd.ctr("images", "import", "--no-unpack", archive)
    for node in lab:
        node.start_sidecar(static_bootstrap_peers=f"{owner.ip}:5001,{other.ip}:5001")
    for name in ("v1", digest):
        path = f"/v2/library/empty/manifests/{name}?ns=docker.io"
        for node in lab:
            until(lambda node=node, path=path: node.request(path).status == 200, timeout=20, what=f"{node} has {name}")
            assert "sha256:" + hashlib.sha256(node.request(path).body).hexdigest() == digest

"""One sidecar serves all namespaces of its containerd, whoever put the images there."""

from __future__ import annotations

import pytest
from lab.cluster import MakeCluster
from lab.image import MIB, MakeImage
from lab.process import until

pytestmark = pytest.mark.real

OWN = {"X-Spegel-Mirrored": "true"}
"""Asks for what the node has itself, as its peers do."""


def test_images_of_several_namespaces(cluster: MakeCluster, image: MakeImage) -> None:
    lab = cluster(2, consul=False)
    owner, node = lab
    images = {
        namespace: image(f"docker.io/library/{namespace.replace('.', '-')}:v1", layers=[MIB], seed=number)
        for number, namespace in enumerate(("k8s.io", "default", "nomad", "moby"))
    }
    for namespace, app in images.items():
        if namespace != "moby":
            owner.containerd.import_image(app.tar, namespace=namespace)
    owner.containerd.import_image(images["k8s.io"].tar, namespace="default")
    for each in lab:
        each.start_sidecar(static_bootstrap_peers=f"{owner.ip}:5001,{node.ip}:5001", containerd_namespace="k8s.io,auto")
    owner.containerd.import_image(images["moby"].tar, namespace="moby")  # one that came after the start
    node.configure("--runtime=containerd")
    for app in images.values():
        path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
        until(lambda path=path: node.request(path).status == 200, timeout=20, what=f"{path} is found")
        node.containerd.pull_cri(app.name)
        assert app.digests <= node.containerd.content()
    assert "no such namespace" not in owner.sidecar.log()

    # what another namespace still has is still served
    twice = images["k8s.io"]
    owner.containerd.remove_image(twice.name)
    path = f"/v2/{images['moby'].repository}/manifests/{images['moby'].tag}?ns=docker.io"
    owner.containerd.remove_image(images["moby"].name, namespace="moby")
    until(
        lambda: owner.request(path, headers=OWN).status == 404, timeout=20, what="an image that is nowhere else is gone"
    )
    for digest in (twice.index, twice.amd64.layers[1]):
        kind = "manifests" if digest == twice.index else "blobs"
        assert owner.request(f"/v2/{twice.repository}/{kind}/{digest}", headers=OWN).status == 200

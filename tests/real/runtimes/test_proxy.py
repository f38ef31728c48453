"""A containerd with an HTTP proxy pulls through its mirror, because the mirror is asked at loopback."""

from __future__ import annotations

import pytest
from lab.cluster import MakeCluster
from lab.containerd import PullError
from lab.image import MIB, MakeImage
from lab.process import until

pytestmark = pytest.mark.real


def test_a_pull_behind_a_proxy(cluster: MakeCluster, image: MakeImage) -> None:
    lab = cluster(2, consul=False)
    owner, node = lab
    app = image(layers=[MIB])
    owner.containerd.import_image(app.tar)
    for each in lab:
        each.start_sidecar(static_bootstrap_peers=f"{owner.ip}:5001,{node.ip}:5001")
    node.containerd.env = {"HTTP_PROXY": "http://me:s3cret@192.0.2.1:3128", "HTTPS_PROXY": "http://192.0.2.1:3128"}
    node.containerd.restart()
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: node.request(path).status == 200, timeout=20, what="the mirror finds the image")

    node.configure("--runtime=containerd")  # the node's own address, which Go asks the proxy for
    with pytest.raises(PullError):
        node.containerd.pull_cri(app.name)

    node.spegel("configuration", "--runtime=containerd", *node.places)
    node.containerd.pull_cri(app.name)
    assert app.digests <= node.containerd.content()

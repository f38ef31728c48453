# containerd 2.1 with concurrent_layer_fetch_buffer asks for `bytes=0-` first. After a 206 it asks that host, and no
# other, for the other pieces of the layer, and one that is refused fails the pull. After a 200 it reads one stream,
# and has the rest of it from the next host when it breaks.

"""A pull in parallel pieces ends well when the only node that has the layer dies in the middle."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from lab.cluster import MakeCluster, Node
from lab.containerd import PullError
from lab.image import MIB, MakeImage
from lab.process import until

pytestmark = pytest.mark.real

LAYER = 48 * MIB  # more than what is held to be verified
PIECES = """
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 4
  concurrent_layer_fetch_buffer = 1048576
"""
"""Pieces so small that most of them have not been asked for when the first one is there."""


@pytest.mark.parametrize("asked", ["its own sidecar", "the other node's sidecar"])
def test_the_only_provider_dies(cluster: MakeCluster, image: MakeImage, asked: str) -> None:
    lab = cluster(3, consul=False, containerd=[None, "21", None])
    upstream, provider, node = lab.start_registry(0), lab[1], lab[2]
    node.add_containerd("21", extra=PIECES).await_ready()
    app = image(f"{upstream.host}/library/app:v1", layers=[LAYER], seed=11)
    upstream.push(app)
    for each in (provider, node):
        first = provider if asked != "its own sidecar" else each
        each.containerd.mirror(f"http://{first.ip}:5000", server=upstream.url)
        everybody = f"{provider.ip}:5001,{node.ip}:5001"
        each.start_sidecar(wait=False, static_bootstrap_peers=everybody, skip_preflight=True)
    for each in (provider, node):
        each.sidecar.await_ready()
    provider.containerd.pull_cri(app.name)
    path = f"/v2/library/app/manifests/{app.amd64.manifest}?ns={upstream.host}"
    until(lambda: node.request(path).status == 200, timeout=20, what="the provider is found")
    provider.port.limit_rate(100)
    upstream.forget()

    failures: list[PullError] = []

    def pull() -> None:
        try:
            node.containerd.pull_cri(app.name)
        except PullError as exc:
            failures.append(exc)

    thread = threading.Thread(target=pull)
    thread.start()
    layer = app.amd64.layers[-1]
    until(lambda: arrived(node, layer) >= MIB, timeout=20, what="the layer has begun to arrive")
    provider.sidecar.kill9()
    thread.join(60)
    assert not thread.is_alive()
    assert not failures, failures
    assert app.digests <= node.containerd.content()
    assert {status for request, status in upstream.answers() if layer in request} == {206}, "what had come was kept"


def arrived(node: Node, layer: str) -> int:
    """Bytes of the layer that the node's containerd has while it downloads it."""
    for reference in (node.containerd.content_path / "ingest").glob("*/ref"):
        with suppress(FileNotFoundError):
            if reference.read_text().endswith(f"/layer-{layer}"):
                return (reference.parent / "data").stat().st_size
    return 0

# Two nodes have a layout each, whose files say since when they have the tag; the third has a containerd that pulls.

"""A tag that has moved: the newest is taken, and one that is too old is left to the registry."""

from __future__ import annotations

import os
import shutil
import time

import pytest
from lab.cluster import Cluster, Node
from lab.image import Image

from .test_pull import members

pytestmark = pytest.mark.real

HOUR, MINUTE = 3600, 60


def lay_out(node: Node, image: Image, age: float) -> None:
    """Start a sidecar that serves the image, whose tag the node has had for ``age`` seconds."""
    layout = node.dir / "layout"
    shutil.copytree(image.layout, layout)
    manifest = layout / "blobs" / image.index.replace(":", "/")
    os.utime(manifest, (time.time() - age,) * 2)
    node.start_sidecar(wait=False, layout_path=layout)


def has(node: Node, image: Image) -> bool:
    return image.index in node.containerd.content()


def test_a_tag_that_has_moved(cluster, image) -> None:
    lab: Cluster = cluster(3, containerd=None)
    before, after = (image("docker.io/library/app:prod", layers=[1000], seed=seed) for seed in (1, 2))
    old, new, puller = lab
    upstream = lab.start_registry(on=0)
    upstream.push(after)
    lay_out(old, before, HOUR)
    lay_out(new, after, MINUTE)
    puller.add_containerd("21")
    puller.containerd.mirror(f"http://{puller.ip}:5000", server=upstream.url)
    puller.start_sidecar(wait=False)
    for node in lab:
        node.sidecar.await_ready()
        node.sidecar.process.until(lambda node=node: members(node) == 2, timeout=20, what="all members are known")

    puller.containerd.pull_cri(after.name)
    assert has(puller, after)
    assert not has(puller, before)
    assert upstream.requests() == []

    new.sidecar.stop()
    puller.sidecar.stop()
    puller.containerd.remove_image(after.name)
    puller.start_sidecar(tag_max_age="30m")
    puller.sidecar.process.until(lambda: members(puller) == 1, timeout=20, what="the node with the old tag is known")
    puller.containerd.pull_cri(after.name)
    assert has(puller, after)
    assert any("/manifests/prod" in request for request in upstream.requests())
    metrics = puller.sidecar.metrics()
    assert 'spegel_tag_choices_total{choice="too_old"} ' in metrics

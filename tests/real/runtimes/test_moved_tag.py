# With the containerd image store dockerd keeps an image whose tag has moved, under a name of its own that names no
# registry.

"""What a node serves of Docker's images whose tags have moved."""

from __future__ import annotations

import pytest
from lab.cluster import MakeCluster
from lab.image import MIB, MakeImage
from lab.process import until

pytestmark = pytest.mark.real

OWN = {"X-Spegel-Mirrored": "true"}
"""Asks for what the node has itself, as its peers do."""


@pytest.mark.parametrize("only_this_registry", [False, True])
def test_the_registry_that_they_came_from_decides(
    cluster: MakeCluster, image: MakeImage, only_this_registry: bool
) -> None:
    lab = cluster(1, consul=False, containerd=[None])
    node, docker_io = lab[0], lab.start_docker_io()
    docker = node.add_docker("28", docker_io=docker_io)
    docker.await_ready()
    node.start_sidecar(
        static_bootstrap_peers=f"{node.ip}:5001",
        registry_filters="^docker.io/secret/",
        mirrored_registries="docker.io" if only_this_registry else None,
    )
    names = ("docker.io/secret/app:v1", "docker.io/public/app:v1")
    secret, public = ([image(name, layers=[MIB], seed=seed) for seed in (1, 2)] for name in names)
    for each in (*secret, *public):
        docker_io.registry.push(each)
        docker.pull(each.name)
    assert {f"moby-dangling@{old.index}" for old, _ in (secret, public)} <= docker.records()

    def is_served(digest: str) -> bool:
        return node.request(f"/v2/any/app/manifests/{digest}?ns=docker.io", headers=OWN).status == 200

    until(lambda: is_served(public[1].index), timeout=20, what="the last one is served")
    assert is_served(public[0].index)
    assert not any(is_served(each.index) for each in secret)

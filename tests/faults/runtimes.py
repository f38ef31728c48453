"""Runtimes are killed and restarted, and a blob is collected as garbage while a neighbour gets it."""

from __future__ import annotations

import time

from lab import cri
from lab.image import MIB, build, is_whole

from tests.faults.catalog import fault
from tests.faults.scene import RUNTIMES, Scene


@fault("containerd killed")
def a_containerd_is_killed(scene: Scene) -> None:
    node = scene.nodes[4]
    with scene.fault("containerd killed, started again after 2 s", spared=(node,)):
        node.containerd.running().kill9()
        time.sleep(2)
        node.containerd.start()
        node.containerd.await_ready(40)


@fault("dockerd killed", takes_minutes=True)
def a_docker_is_killed(scene: Scene) -> None:
    node = scene.nodes[RUNTIMES.index(None)]
    with scene.fault("dockerd killed, started again after 2 s", spared=(node,)):
        node.docker.running().kill9()
        time.sleep(2)
        node.docker.start()
        node.docker.await_ready(60)


@fault("blob collected")
def a_blob_is_collected_while_it_is_served(scene: Scene) -> None:
    giver, taker = scene.nodes[0], scene.nodes[2]
    image = build(scene.lab.dir / "collected", "docker.io/library/collected:v1", [24 * MIB, 300_000], seed=99)
    scene.upstream.push(image)
    giver.containerd.pull_cri(image.name)
    layer = image.amd64.layers[1]
    assert is_whole(giver.containerd.content_path, layer)
    scene.until(lambda: giver.ip in scene.load.look_up(taker, image).found, timeout=20, what="it is announced")
    with scene.fault("blob collected as garbage while it is served", spared=(taker,)):
        giver.port.limit_rate(50)  # four seconds
        with scene.beside(lambda: taker.containerd.pull_cri(image.name, timeout=40)):
            time.sleep(1)
            assert not is_whole(taker.containerd.content_path, layer)
            cri.remove_image(giver.containerd.sock, image.name)
            assert not giver.containerd.blob(layer).exists()
        scene.unlimit(giver)
        assert is_whole(taker.containerd.content_path, layer)
        cri.remove_image(taker.containerd.sock, image.name)

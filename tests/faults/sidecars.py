"""Sidecars that die, stop, hang and come back: one, the one that leads, three, all."""

from __future__ import annotations

import signal
import time
from functools import partial

from lab.cluster import Node
from lab.process import until

from tests.faults.catalog import fault
from tests.faults.scene import HANG_TIMEOUT, Scene, lasting

STOP_TIMEOUT = 20.0


def one(scene: Scene) -> list[Node]:
    led = scene.leader()
    return [next(node for node in scene.nodes[3:] if node is not led)]


def the_leader(scene: Scene) -> list[Node]:
    return [scene.leader()]


def three(scene: Scene) -> list[Node]:
    led = scene.leader()
    return [led, *(node for node in scene.nodes if node is not led)][:3]


def kill9(nodes: list[Node]) -> None:
    for node in nodes:
        node.sidecar.kill9()


def terminate(nodes: list[Node]) -> None:
    for node in nodes:
        node.sidecar.stopped = True
        node.sidecar.process.signal(signal.SIGTERM)
    for node in nodes:
        assert node.sidecar.process.wait(STOP_TIMEOUT) == 0


def hang(nodes: list[Node]) -> None:
    for node in nodes:
        node.sidecar.pause()
    for node in nodes:
        node.sidecar.stopped = True
        assert node.sidecar.process.wait(HANG_TIMEOUT * 3) == 1


WHO = {"a sidecar": one, "the leader": the_leader, "three sidecars at once": three}
HOW = {"kill -9": kill9, "SIGTERM": terminate, "SIGSTOP for good": hang}
IN_SHORT = {("kill -9", "three sidecars at once"), ("SIGTERM", "the leader"), ("SIGSTOP for good", "a sidecar")}


def ended_and_started_again(scene: Scene, how: str, who: str) -> None:
    nodes = WHO[who](scene)
    with scene.fault(f"{how}: {who}", unasked=tuple(nodes)):
        HOW[how](nodes)
        time.sleep(lasting(10, 3))
        for node in nodes:
            scene.start(node)


def paused_and_resumed(scene: Scene, who: str) -> None:
    """For less time than their guards wait."""
    nodes = WHO[who](scene)
    with scene.fault(f"SIGSTOP, SIGCONT after 3 s: {who}"):
        for node in nodes:
            node.sidecar.pause()
        time.sleep(HANG_TIMEOUT * 0.6)
        for node in nodes:
            node.sidecar.resume()
    assert all(node.sidecar.process.alive for node in nodes)


for who in WHO:
    for how in HOW:
        late = (how, who) not in IN_SHORT
        fault(f"{how}: {who}", takes_minutes=late)(partial(ended_and_started_again, how=how, who=who))
    fault(f"paused: {who}", takes_minutes=True)(partial(paused_and_resumed, who=who))


@fault("cold start")
def all_start_at_once(scene: Scene) -> None:
    with scene.fault("all sidecars killed, all started at once", unasked=tuple(scene.nodes)):
        kill9(scene.nodes)
        time.sleep(1)
        for node in scene.nodes:
            scene.start(node)


@fault("rolling restart", takes_minutes=True)
def one_after_the_other_is_restarted(scene: Scene) -> None:
    with scene.fault("rolling restart", unasked=tuple(scene.nodes)):
        for node in scene.nodes:
            terminate([node])
            scene.start(node)
            node.sidecar.await_ready(60)
            time.sleep(1)


@fault("leader flaps", takes_minutes=True)
def the_lead_changes_all_the_time(scene: Scene) -> None:
    changes = int(lasting(6, 2))
    with scene.fault(f"another leader every 5 s, {changes} times"):
        for _ in range(changes):
            entry = scene.outside.consul.kv_entry("spegel/leader")
            assert entry is not None
            before, began = entry.get("Session"), time.monotonic()
            scene.outside.consul.put(f"/v1/session/destroy/{before}")
            until(lambda before=before: another(scene, before), timeout=20, what="there is another session at the key")
            time.sleep(max(0.0, began + 5 - time.monotonic()))


def another(scene: Scene, before: object) -> bool:
    entry = scene.outside.consul.kv_entry("spegel/leader")
    return entry is not None and entry.get("Session") not in (None, before)

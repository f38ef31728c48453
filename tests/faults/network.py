"""Cables are cut, one-way, slow, lossy, or lead to one half of the nodes only."""

from __future__ import annotations

import time

from lab.cluster import Node

from tests.faults.catalog import fault
from tests.faults.delay import Delay
from tests.faults.scene import Scene, lasting

VICTIM = 3


@fault("link down")
def a_cable_is_pulled(scene: Scene) -> None:
    victim = scene.nodes[VICTIM]
    with scene.fault("link of a node down", spared=(victim,)):
        victim.port.link_down()
        time.sleep(lasting(20, 5))
        victim.port.link_up()
        scene.rejoin(victim)


@fault("leader's link down", takes_minutes=True)
def the_leaders_cable_is_pulled(scene: Scene) -> None:
    led = scene.leader()
    with scene.fault("link of the leader down", spared=(led,)):
        led.port.link_down()
        time.sleep(20)
        led.port.link_up()
        scene.rejoin(led)


@fault("one-way in", takes_minutes=True)
def a_node_hears_nobody(scene: Scene) -> None:
    """It can send, and nothing of other nodes arrives; upstream does."""
    victim = scene.nodes[VICTIM]
    with scene.fault("one-way drop: a node hears no other node", unasked=(victim,)):
        victim.port.deafen(*others(scene, victim))
        time.sleep(20)
        victim.port.heal()
        scene.rejoin(victim)


@fault("one-way out", takes_minutes=True)
def a_node_is_heard_by_nobody(scene: Scene) -> None:
    victim = scene.nodes[VICTIM]
    with scene.fault("one-way drop: no other node hears a node", unasked=(victim,)):
        for node in scene.nodes:
            if node is not victim:
                node.port.deafen(victim.ip)
        time.sleep(20)
        for node in scene.nodes:
            node.port.heal()
        scene.rejoin(victim)


@fault("pair cut")
def two_nodes_cannot_reach_each_other(scene: Scene) -> None:
    victim = scene.nodes[VICTIM]
    with scene.fault("a pair of nodes cut"):
        victim.port.drop(scene.nodes[0].ip)
        time.sleep(lasting(30, 4))
        victim.port.heal()


@fault("loss")
def packets_are_lost(scene: Scene) -> None:
    victim = scene.nodes[VICTIM]
    with scene.fault("30 % loss at a node"):
        victim.port.lose(0.3)
        time.sleep(lasting(30, 5))
        victim.port.heal()


@fault("10 Mbit/s", takes_minutes=True)
def a_node_is_slow(scene: Scene) -> None:
    victim = scene.nodes[VICTIM]
    with scene.fault("a node sends 10 Mbit/s"):
        victim.port.limit_rate(10)
        time.sleep(30)
        scene.unlimit(victim)


@fault("latency", takes_minutes=True)
def a_node_is_far(scene: Scene) -> None:
    victim = scene.nodes[VICTIM]
    with scene.fault("300 ms between a node and the others"):
        with Delay(victim, seconds=0.15, ports=(5000, 5001)):
            time.sleep(30)


@fault("partition", takes_minutes=True)
def half_of_the_nodes_are_apart(scene: Scene) -> None:
    """Each half reaches upstream; the smaller one has no quorum of Consul's servers."""
    smaller, larger = scene.nodes[2:5], [*scene.nodes[:2], *scene.nodes[5:]]
    with scene.fault("partition: three nodes of seven apart", unasked=tuple(scene.nodes)):
        for node in smaller:
            node.port.drop(*(other.ip for other in larger))
        time.sleep(60)
        for node in smaller:
            node.port.heal()
        for node in smaller:
            scene.rejoin(node)


def others(scene: Scene, node: Node) -> list[str]:
    return [other.ip for other in scene.nodes if other is not node]

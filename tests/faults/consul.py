"""Consul's agents and servers die, and the servers lose their quorum."""

from __future__ import annotations

import time

from lab.cluster import Node
from lab.consul import await_all

from tests.faults.catalog import fault
from tests.faults.scene import Scene, lasting

SERVERS = slice(0, 3)


def kill_and_restart(scene: Scene, nodes: list[Node], seconds: float) -> None:
    for node in nodes:
        node.consul.running().kill9()
    time.sleep(seconds)
    for node in nodes:
        node.consul.start()
    await_all([node.consul for node in scene.lab], timeout=60)


def raft_leader(scene: Scene) -> Node:
    leads = scene.until(scene.outside.consul.leader, timeout=30, what="a server leads")
    return next(node for node in scene.nodes[SERVERS] if leads.startswith(f"{node.ip}:"))


@fault("agent killed", takes_minutes=True)
def an_agent_is_killed(scene: Scene) -> None:
    with scene.fault("Consul agent of a node killed"):
        kill_and_restart(scene, [scene.nodes[4]], 12)


@fault("leader's agent killed", takes_minutes=True)
def the_leaders_agent_is_killed(scene: Scene) -> None:
    led = scene.leader()
    with scene.fault("Consul agent of the leader killed"):
        kill_and_restart(scene, [led], 12)


@fault("server killed", takes_minutes=True)
def a_server_is_killed(scene: Scene) -> None:
    leads = raft_leader(scene)
    victim = next(node for node in scene.nodes[SERVERS] if node is not leads)
    with scene.fault("Consul server killed"):
        kill_and_restart(scene, [victim], 12)


@fault("Raft leader killed", takes_minutes=True)
def the_raft_leader_is_killed(scene: Scene) -> None:
    with scene.fault("Consul's Raft leader killed"):
        kill_and_restart(scene, [raft_leader(scene)], lasting(12, 2))


@fault("quorum lost", takes_minutes=True)
def the_quorum_is_lost(scene: Scene) -> None:
    with scene.fault("Consul without a quorum"):
        kill_and_restart(scene, scene.nodes[0:2], 60)


@fault("started without quorum", takes_minutes=True)
def a_sidecar_starts_without_a_quorum(scene: Scene) -> None:
    """It joins through the members of its last run."""
    victim = scene.nodes[5]
    with scene.fault("Consul without a quorum, a sidecar killed and started meanwhile", unasked=(victim,)):
        for node in scene.nodes[0:2]:
            node.consul.running().kill9()
        time.sleep(5)
        victim.sidecar.kill9()
        scene.start(victim)
        victim.sidecar.process.until(
            lambda: scene.metric(victim, "spegel_ring_members") == len(scene.nodes) - 1,
            timeout=40,
            what="it is in the ring although nobody leads",
        )
        for node in scene.nodes[0:2]:
            node.consul.start()
        await_all([node.consul for node in scene.lab], timeout=60)

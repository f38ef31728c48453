# One cluster for all of it, because most of the time is Consul's own: three servers (n0 to n2) and three client agents
# (n3 to n5), each with a sidecar.  Each event starts and ends with all three sidecars taking part.  Time is taken from
# the signal to the moment at which a server shows another session at the key.

"""How long the cluster is without a leader, with the sidecar's and Consul's default settings."""

from __future__ import annotations

import ipaddress
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from lab.cluster import Cluster, Node
from lab.consul import ConsulOptions, await_all, await_member
from lab.process import until

from tests.real.consul.sidecars import election_events, empty_layout, last_state, when

pytestmark = pytest.mark.real

KEY = "spegel/leader"
SERVERS, CLIENTS = range(3), range(3, 6)
SERVICES = {"spegel": 3, "spegel-router": 3, "spegel-metrics": 3, "spegel-leader": 1}
"""All that pass once the agents have told the servers all they know; until then see leader_service.py."""
AGENTS_SYNC = 6.5
"""An agent that has found servers tells them all it knows up to 3 s later, and once more up to 3 s after that.

If a service is being registered at just that moment it puts it off for 15 to 30 s, and until then tells of no failed
check either: a leader that is killed in a cluster that has just come up may be noticed by its TTL only.
"""


OUTAGES = 3
"""How often quorum is lost at most, until a machine with other work lets the leader pass its check each 3 s."""


@dataclass(frozen=True)
class Held:
    """The lock as a server has it."""

    session: str
    index: int
    node: str


class Scene:
    """The cluster, and who leads in it."""

    def __init__(self, lab: Cluster) -> None:
        self.lab = lab
        self.observer = lab[0]
        self._layout = empty_layout(lab.dir)
        for index in CLIENTS:
            self.start(lab[index])

    def start(self, node: Node) -> None:
        self.give_address(node)
        node.start_sidecar(wait=False, layout_path=self._layout, advertise_addr=advertised(node))

    def give_address(self, node: Node) -> None:
        node.netns.ip("addr", "replace", f"{advertised(node)}/32", "dev", "eth0")

    def take_address(self, node: Node) -> None:
        node.netns.ip("addr", "del", f"{advertised(node)}/32", "dev", "eth0")

    def held(self) -> Held | None:
        entry = self.observer.consul.kv_entry(KEY)
        if entry is None or "Session" not in entry:
            return None
        value = json.loads(self.observer.consul.kv_get(KEY) or b"{}")
        if value.get("session") != entry["Session"]:
            return None  # changed between the two requests
        return Held(entry["Session"], entry["ModifyIndex"], value["node"])

    def settle(self) -> Held:
        """Wait until one sidecar leads, the others follow, and all are registered."""
        for index in CLIENTS:
            self.lab[index].sidecar.await_ready()
        until(self.settled, timeout=40, what="all sidecars agree on a leader")
        held = self.held()
        assert held is not None
        return held

    def settled(self) -> bool:
        held = self.held()
        states = [last_state(self.lab[index]) for index in CLIENTS]
        counts = {name: len(self.observer.consul.instances(name)) for name in SERVICES}
        return (
            held is not None
            and counts == SERVICES
            and sorted(state.get("state", "") for state in states) == ["follower", "follower", "leader"]
            and {state["leader"] for state in states} == {held.node}
        )

    def leader(self, held: Held) -> Node:
        return next(node for node in self.lab if node.name == held.node)

    def until_another_leads(self, before: Held, began: float, limit: float) -> float:
        """Seconds since ``began`` (of the monotonic clock)."""
        until(
            lambda: (held := self.held()) is not None and held.session != before.session,
            timeout=limit,
            what="another node leads",
        )
        return time.monotonic() - began

    def stays(self, before: Held, seconds: float) -> None:
        """Nothing changes at the key, as far as it can be read."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.held() in (before, None)
            time.sleep(0.1)


def advertised(node: Node) -> str:
    """The address of its sidecar, of which Consul's agent does not know."""
    return str(ipaddress.ip_address(node.ip) + 100)


def first(node: Node, state: str, since: float) -> float | None:
    """When ``node`` first was in ``state`` after ``since``, of the wall clock."""
    return next(
        (when(event) for event in election_events(node) if event["state"] == state and when(event) >= since), None
    )


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Cluster(6, consul=ConsulOptions(servers=3), containerd=None) as lab:
        time.sleep(AGENTS_SYNC)
        yield Scene(lab)


def test_the_leader_is_stopped(scene: Scene, table: Any) -> None:
    for _ in range(2):
        before = scene.settle()
        old = scene.leader(before)
        began = time.monotonic()
        old.sidecar.stopped = True
        old.sidecar.process.signal(signal.SIGTERM)
        took = scene.until_another_leads(before, began, 5)
        assert old.sidecar.process.wait(10) == 0
        scene.start(old)
        table.within("SIGTERM of the leader", took, 0.5)


def test_the_leader_is_killed(scene: Scene, table: Any) -> None:
    before = scene.settle()
    old = scene.leader(before)
    began = time.monotonic()
    old.sidecar.kill9()
    took = scene.until_another_leads(before, began, 15)
    scene.start(old)
    scene.stays(scene.settle(), 4)
    table.within("kill -9 of the leader, session bound to its own check", took, 4)


def test_a_killed_leader_is_started_again_at_once(scene: Scene, table: Any) -> None:
    """As by a supervisor: its check never fails, so only the new process can end the old one's session."""
    before = scene.settle()
    old = scene.leader(before)
    old.sidecar.kill9()
    began = time.monotonic()
    scene.start(old)
    took = scene.until_another_leads(before, began, 15)
    table.within("kill -9 of the leader and start again (includes the start)", took, 4)


def test_the_leaders_address_is_lost(scene: Scene, table: Any) -> None:
    before = scene.settle()
    old = scene.leader(before)
    began = time.monotonic()
    scene.take_address(old)
    took = scene.until_another_leads(before, began, 60)
    scene.stays(new := scene.held() or before, 4)
    assert scene.leader(new) is not old
    scene.give_address(old)
    assert scene.settle() == new
    table.within("the leader's machine loses the address (two looks, 10 s apart)", took, 21)


def test_the_leaders_node_dies(scene: Scene, table: Any) -> None:
    before = scene.settle()
    old = scene.leader(before)
    began = time.monotonic()
    old.port.link_down()
    took = scene.until_another_leads(before, began, 20)
    new = scene.held()
    assert new is not None
    cut_off = time.time()
    until(lambda: last_state(old)["state"] == "suspended", timeout=5, what="the old leader knows that it is cut off")
    winner = scene.leader(new)
    until(lambda: last_state(winner)["state"] == "leader", timeout=5, what=f"{winner} knows that it leads")
    took_over = when(last_state(winner))
    stepped_down = first(old, "suspended", cut_off - 20)
    assert stepped_down is not None
    old.port.link_up()
    scene.observer.consul.cli("join", old.ip)  # by themselves they would find each other within minutes
    await_member(scene.observer.consul, old.name, alive=True)
    table.within("the leader's node dies", took, 10)
    table.within("overlap of two leaders meanwhile", max(0.0, stepped_down - took_over), 0)


def test_the_servers_leader_is_killed(scene: Scene, table: Any) -> None:
    before = scene.settle()
    victim = next(scene.lab[index] for index in SERVERS if scene.lab[index].ip in scene.observer.consul.leader())
    scene.observer = next(scene.lab[index] for index in SERVERS if scene.lab[index] is not victim)
    victim.consul.running().kill9()
    until(lambda: victim.ip not in scene.observer.consul.leader() != "", timeout=20, what="another server leads")
    scene.stays(before, 3)
    assert scene.held() == before
    victim.consul.start()
    await_all([node.consul for node in scene.lab])
    table.is_true("the servers' Raft leader is killed", "no change")


def test_no_quorum_for_40_seconds(scene: Scene, table: Any) -> None:
    """The lock stays where it is; another round if Consul lost the leader itself, because the machine stood still."""
    for _ in range(OUTAGES):
        before = scene.settle()
        leader = scene.leader(before)
        watched = (leader.consul.running(), scene.lab[2].consul.running())
        seen = [len(agent.log()) for agent in watched]
        scene.observer = scene.lab[2]
        lost_at, back_at, suspended = _lose_quorum(scene, leader)
        agent, server = (agent.log()[start:] for agent, start in zip(watched, seen, strict=True))
        lost = f"Check missed TTL, is now critical: check=spegel-leader:{leader.name}:" in agent
        if not lost and f"EventMemberFailed: {leader.name} " not in server:
            break
        table.is_true("no quorum for 40 s, and the leader's node stood still", "measured again")
    else:
        pytest.fail(f"in each of {OUTAGES} outages Consul lost the leader: does it still pass its check meanwhile?")
    until(lambda: last_state(leader)["state"] == "leader", timeout=20, what="the leader leads again")
    assert scene.held() == before
    back = [when(last_state(scene.lab[index])) - back_at for index in CLIENTS]
    others = [moment for node, moment in suspended.items() if node is not leader]
    table.is_true("no quorum for 40 s", "no change")
    table.within("… until the leader calls itself suspended (its lease)", suspended[leader] - lost_at, 6)
    # the server that is left leads until its own lease of 2.5 s is over
    table.within("… until the last follower does (a TTL)", max(others) - lost_at, 15 + 3)
    table.within("… until all are back, once there is a quorum", max(back), 1)


def _lose_quorum(scene: Scene, leader: Node) -> tuple[float, float, dict[Node, float]]:
    """Two of three servers are down for 40 s: when, until when, and when each node called itself suspended."""
    lost_at, began = time.time(), time.monotonic()
    for index in (0, 1):
        scene.lab[index].consul.running().kill9()
    suspended: dict[Node, float] = {}
    for index in CLIENTS:
        node = scene.lab[index]
        until(lambda node=node: first(node, "suspended", lost_at), timeout=25, what=f"{node} is suspended")
        moment = first(node, "suspended", lost_at)
        assert moment is not None
        suspended[node] = moment
    time.sleep(max(0.0, began + 40 - time.monotonic()))
    for index in (0, 1):
        scene.lab[index].consul.start()
    until(lambda: _has_leader(leader), timeout=20, what="the servers have a leader again")
    back_at = time.time()
    for index in CLIENTS:
        node = scene.lab[index]
        until(lambda node=node: last_state(node)["state"] != "suspended", timeout=20, what=f"{node} is back")
    return lost_at, back_at, suspended


def _has_leader(node: Node) -> bool:
    try:
        return bool(node.consul.leader())
    except AssertionError:
        return False


def test_the_leaders_agent_restarts(scene: Scene, table: Any) -> None:
    await_all([node.consul for node in scene.lab])
    before = scene.settle()
    node = scene.leader(before)
    node.consul.running().kill9()
    time.sleep(1)
    node.consul.start()
    await_all([node.consul for node in scene.lab])
    scene.stays(before, 3)
    until(scene.settled, timeout=20, what="all agree again")
    assert scene.held() == before
    table.is_true("the leader's agent is killed and back after 1 s", "no change")


def test_no_sidecar_has_fallen(scene: Scene) -> None:
    for index in CLIENTS:
        assert scene.lab[index].sidecar.process.alive
        assert "Traceback" not in scene.lab[index].sidecar.log()

# Servers, and an agent on each node, as far as sidecars ask them, without HTTP: what ConsulClient's methods return and
# raise is returned and raised here.  The rules are those of FakeConsul, which were measured at Consul 1.8; this one
# serves a thousand nodes, and its faults are those of a cluster: servers without quorum, agents that are away from
# them, links to an agent, and tokens that see nothing.

"""``VirtualConsul``: one lock, its sessions, and the catalog of routers, on Trio's clock."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

from spegel_consul.consul.api.client import HealthyService, KVEntry
from spegel_consul.consul.api.consul_errors import (
    AccessDenied,
    ConsulTimeout,
    ConsulUnavailable,
    InvalidSession,
    NoClusterLeader,
    NotFound,
)
from spegel_consul.consul.catalog.service_definitions import LEADER_CHECK_TTL
from tests.sim.network import SimNetwork

GOSSIP = (5.0, 8.0)
CHECKED_AFTER = (0.5, 2.5)
HELD = 7.0
"""How long servers keep a request in the hope of a leader, in seconds."""


class Table:
    """What long polls of one kind wait for."""

    def __init__(self) -> None:
        self.index = 10
        self.woken = trio.Event()

    def change(self) -> None:
        self.index += 1
        self.wake()

    def wake(self) -> None:
        self.woken.set()
        self.woken = trio.Event()


@dataclass
class Session:
    agent: Agent
    ttl: float
    lock_delay: float
    checked: bool
    ends: float


class VirtualConsul:
    """``network`` is the clock; ``rng`` decides on what is left to chance."""

    def __init__(self, network: SimNetwork, rng: random.Random) -> None:
        self.network = network
        self.rng = rng
        self.quorum = True
        self.behind_until = -math.inf
        self.acquires = 0
        """Writes that asked for the lock."""
        self.changes = 0
        """How often it went to somebody."""
        self.excused_until = -math.inf
        """An operator, or servers that forgot a lock-delay, may have given the lock away before its time."""
        self.holder: str | None = None
        self.sessions: dict[str, Session] = {}
        self.entry: KVEntry | None = None
        self.keys, self.services = Table(), Table()
        self.catalog: tuple[HealthyService, ...] = ()
        self._free_at = -math.inf
        self._instances: dict[str, HealthyService] = {}
        self._names = 0

    def agent(self, node: str, drift: float) -> Agent:
        return Agent(self, node, drift)

    def wake(self) -> None:
        self.keys.wake()
        self.services.wake()

    def write(self, value: bytes | None, lock_index: int) -> None:
        self.keys.change()
        self.entry = None
        if value is not None:
            self.entry = KVEntry("spegel/leader", value, self.holder, self.keys.index)

    def new_session(self, session: Session) -> str:
        self._names += 1
        name = f"s{self._names}"
        self.sessions[name] = session
        self._watch(name)
        return name

    def _watch(self, name: str) -> None:
        session = self.sessions.get(name)
        if session is None:
            return
        now = trio.current_time()
        failed = session.agent.passed + LEADER_CHECK_TTL if session.checked and session.agent.talks() else math.inf
        due = min(session.ends, failed)
        if now < due or not self.quorum:
            self.network.at(max(due, now + 0.5), lambda: self._watch(name))
        else:
            self.end(name)

    def end(self, name: str) -> None:
        """The session ends, by its TTL, its check, its node or an operator; its lock goes into lock-delay."""
        session = self.sessions.pop(name, None)
        if session is not None and self.holder == name:
            self.holder = None
            self._free_at = trio.current_time() + session.lock_delay
            self.write(self.entry.value if self.entry else None, self.changes)

    def acquire(self, name: str, value: bytes) -> bool:
        self.acquires += 1
        if name not in self.sessions:
            raise InvalidSession(f'500 invalid session "{name}"')
        if self.holder not in (None, name) or trio.current_time() < self._free_at:
            return False
        self.changes += self.holder != name
        self.holder = name
        self.write(value, self.changes)
        return True

    def release(self, name: str, value: bytes) -> bool:
        if self.holder != name:
            return False
        self.holder = None
        self.write(value, self.changes)
        return True

    # -- faults

    def lose_quorum(self) -> None:
        self.quorum = False

    def new_leader(self) -> None:
        """Servers elect; timers start again and lock-delays are forgotten."""
        now = trio.current_time()
        self.quorum = True
        self.behind_until = now + self.rng.uniform(0, 0.3)
        if now < self._free_at:
            self._excuse(now)
        self._free_at = -math.inf
        for session in self.sessions.values():
            session.ends = now + 2 * session.ttl
        self.wake()

    def destroy_lock(self) -> None:
        """An operator ends the leader's session."""
        if self.holder is not None and self.quorum:
            self._excuse(trio.current_time())
            self.end(self.holder)

    def _excuse(self, now: float) -> None:
        self.excused_until = now + 5.5 * 17 / 16 + 2 + 3  # a leader reads the key at least that often

    # -- catalog

    def instance(self, node: str, service: HealthyService | None) -> None:
        """``node``'s router passes its checks, or no longer."""
        if service is None:
            self._instances.pop(node, None)
        else:
            self._instances[node] = service
        self.catalog = tuple(self._instances.values())
        self.services.change()


class Agent:
    """One node's agent, and the way to it; what a sidecar has as its ``ConsulClient`` is :meth:`client`."""

    def __init__(self, consul: VirtualConsul, node: str, drift: float) -> None:
        self.consul, self.node, self.drift = consul, node, drift
        self.link = ""
        """"refused", "silent", or well."""
        self.away = 0
        """By how many faults it is away from the servers."""
        self.filtered = self.denied = False
        self.passed = -math.inf
        self.service: HealthyService | None = None
        self._generation = 0

    def talks(self) -> bool:
        return not self.away and self.consul.quorum

    def client(self) -> Client:
        return Client(self)

    def registered(self, service: HealthyService | None) -> None:
        """The process began to listen, or ended; checks need some time to see it."""
        self.service = service
        self._later(*CHECKED_AFTER)

    def leave(self) -> None:
        """Away from the servers, which declare the node dead after a while."""
        self.away += 1
        self._later(*GOSSIP)

    def come_back(self) -> None:
        self.away -= 1
        self._later(0.5, 2.0)
        self.consul.wake()

    def _later(self, least: float, most: float) -> None:
        self._generation += 1
        mine = self._generation
        moment = trio.current_time() + self.consul.rng.uniform(least, most)
        self.consul.network.at(moment, lambda: self._seen(mine))

    def _seen(self, generation: int) -> None:
        if generation != self._generation:
            return
        if not self.consul.quorum:
            self._later(1.0, 2.0)
            return
        if self.away:
            for name in [name for name, session in self.consul.sessions.items() if session.agent is self]:
                self.consul.end(name)
        self.consul.instance(self.node, None if self.away else self.service)


class Client:
    """The methods of ``ConsulClient`` that sidecars use."""

    def __init__(self, agent: Agent) -> None:
        self._agent, self._consul = agent, agent.consul
        self.dead = False
        """The process was killed: it says no goodbye."""

    async def _reach(self, within: float = 10.0, *, servers: bool = True, stale: bool = False) -> None:
        began = trio.current_time()
        if self.dead or self._agent.link == "refused":
            await trio.sleep(0.001)
            raise ConsulUnavailable("connection refused")
        if self._agent.link == "silent":
            await trio.sleep(within)
            raise ConsulTimeout(f"no answer within {within:g} s")
        await trio.sleep(self._consul.rng.choice((0.001, 0.002, 0.005, 0.02)))
        if not servers:
            return
        while self._agent.away or not (self._consul.quorum or stale):
            if trio.current_time() - began >= min(HELD, within):
                if within <= HELD:
                    raise ConsulTimeout(f"no answer within {within:g} s")
                raise NoClusterLeader("500 No cluster leader")
            await trio.sleep(min(1.0, within / 4))
        if self._agent.denied:
            raise AccessDenied("403 Permission denied")

    async def _block(self, table: Table, index: int, wait: float, *, stale: bool = False) -> None:
        """Until the index moves, or the time is over. Raises what ends a long poll."""
        until = trio.current_time() + wait
        while index and table.index == index:
            with trio.move_on_at(until) as limit:
                await table.woken.wait()
            if self._agent.link == "refused" or self.dead:
                raise ConsulUnavailable("connection reset")
            if limit.cancelled_caught:
                break
        if self._agent.link == "silent" or self._agent.away:
            await trio.sleep_until(until + wait / 16 + 2)
            raise ConsulTimeout("no answer")
        if not (self._consul.quorum or stale):
            raise NoClusterLeader("500 No cluster leader")

    async def kv_get(
        self, key: str, index: int = 0, wait: float = 60.0, *, consistent: bool = False
    ) -> tuple[int, KVEntry | None]:
        await self._reach()
        if consistent and trio.current_time() < self._consul.behind_until:
            raise NoClusterLeader("500 Not ready to serve consistent reads")
        await self._block(self._consul.keys, index, wait)
        return self._consul.keys.index, self._consul.entry

    async def kv_acquire(self, key: str, session: str, value: bytes, flags: int = 0) -> bool:
        await self._reach()
        return self._consul.acquire(session, value)

    async def kv_release(self, key: str, session: str, value: bytes, flags: int = 0) -> bool:
        await self._reach()
        return self._consul.release(session, value)

    async def session_create(
        self, name: str, *, ttl: float, lock_delay: float, behavior: str, service_checks: tuple[str, ...]
    ) -> str:
        await self._reach()
        ttl *= 1 + self._agent.drift
        self._agent.passed = max(self._agent.passed, trio.current_time() - 0.05)
        ends = trio.current_time() + 2 * ttl
        return self._consul.new_session(Session(self._agent, ttl, lock_delay, bool(service_checks), ends))

    async def session_renew(self, session: str, within: float | None = None) -> None:
        await self._reach(within or 10.0)
        found = self._consul.sessions.get(session)
        if found is None or trio.current_time() < self._consul.behind_until:
            raise NotFound(f"404 Session id '{session}' not found")
        found.ends = trio.current_time() + 2 * found.ttl

    async def session_destroy(self, session: str) -> None:
        await self._reach()
        self._consul.end(session)

    async def status_leader(self, within: float | None = None) -> str:
        await self._reach(within or 10.0, stale=True)
        return "10.0.0.1:8300" if self._consul.quorum else ""

    async def health_service(
        self, name: str, index: int = 0, wait: float = 60.0, **how: Any
    ) -> tuple[int, tuple[HealthyService, ...]]:
        await self._reach(stale=True)
        await self._block(self._consul.services, index, wait, stale=True)
        return self._consul.services.index, () if self._agent.filtered else self._consul.catalog

    async def token(self) -> None:
        """Return None, because these agents have no ACLs."""

    async def register_service(self, definition: Mapping[str, object]) -> None:
        await self._reach(servers=False)

    async def deregister_service(self, service_id: str) -> None:
        await self._reach(servers=False)

    async def check_pass(self, check_id: str, within: float | None = None) -> None:
        await self._reach(within or 10.0, servers=False)
        self._agent.passed = trio.current_time()

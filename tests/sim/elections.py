# Whole elections in virtual time: many candidates, one fake Consul, faults between them.

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from spegel_consul.consul.catalog.leader_service import LeaderService
from spegel_consul.consul.catalog.service_definitions import ServiceDefinition, TtlCheck
from spegel_consul.consul.consul_lock import ConsulLock
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.election_view import ElectionSettings, State
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.observable import Observable
from tests.consul.fakeconsul import FakeConsul


class World:
    """``count`` candidates named n0, n1, …, each with its own link to one Consul."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.consul = FakeConsul(nursery)
        self.candidates: list[Candidate] = []
        self.scopes: list[trio.CancelScope] = []
        self.obstacles: dict[str, Observable[str | None]] = {}
        """Why a node must not lead, by its name."""
        self._nursery = nursery

    async def add(self, **settings: Any) -> Candidate:
        return await self._start(len(self.candidates), **settings)

    async def restart(self, candidate: Candidate) -> Candidate:
        """The process of ``candidate`` again, on the same node."""
        return await self._start(self.candidates.index(candidate))

    async def _start(self, number: int, *, leader_service: bool = False, **settings: Any) -> Candidate:
        name = f"n{number}"
        me = LeaderRecord(f"peer{number}", (f"/ip4/10.0.0.{number}/tcp/5001/p2p/peer{number}",), node=name)
        election, rng = ElectionSettings(**settings), random.Random(number)
        client = self.consul.client(name)
        service = ServiceDefinition(f"spegel-leader:{name}", "spegel-leader", "10.0.0.1", 5001, (TtlCheck(3.0),))
        leader = LeaderService(client, service) if leader_service else None
        obstacle = self.obstacles.setdefault(name, Observable(None))
        candidate = Candidate(ConsulLock(client, election, leader), me, obstacle=obstacle, rng=rng)
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await candidate.run(task_status=task_status)

        await self._nursery.start(run)
        self.candidates.append(candidate)
        self.scopes.append(scope)
        return candidate

    def in_state(self, state: State) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.view.state is state]

    async def leader(self) -> Candidate:
        await until(lambda: self.in_state(State.LEADER))
        return self.in_state(State.LEADER)[0]

    def stop(self, candidate: Candidate) -> None:
        self.scopes[self.candidates.index(candidate)].cancel()

    def agreed(self) -> bool:
        live = [candidate for candidate in self.candidates if candidate.view.state is not State.STOPPED]
        states = [candidate.view.state for candidate in live]
        return (
            states.count(State.LEADER) == 1
            and states.count(State.FOLLOWER) == len(live) - 1
            and len({(c.view.leader.peer_id, c.view.epoch, c.view.session) for c in live}) == 1
            and all(c.view.fresh for c in live)
        )


@asynccontextmanager
async def world(count: int = 0, **settings: object) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(nursery)
        for _ in range(count):
            await made.add(**settings)
        yield made
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], limit: float = 300.0, step: float = 0.05) -> float:
    """Virtual seconds until ``condition()`` holds."""
    began = trio.current_time()
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(step)
    return trio.current_time() - began

# One run: all nodes start together, the plan's faults happen, and then what must hold is looked at.  A run is its seed:
# Trio's own choices are seeded too, so a seed that fails does the same again.

"""A cluster in virtual time, and what must hold in it."""

from __future__ import annotations

import hashlib
import itertools
import random
import resource
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.dht.placement import REPLICAS
from tests.sim import faults, loop
from tests.sim.faults import Fault
from tests.sim.forks import Forks
from tests.sim.loop import Loop
from tests.sim.network import SimNetwork
from tests.sim.node import SimNode, shortcuts
from tests.sim.virtualconsul import VirtualConsul

STARTS_WITHIN, SETTLED = 5.0, 40.0
LIMIT = 60.0
"""Virtual seconds from the last fault to one ring in which all is found."""
QUIET = 60.0
"""Seconds over which messages are counted at the end."""
ACQUIRES = 2
"""Writes for one change of the leader, on average."""
RACE = 3
"""Further writes, because in one change of a run several nodes may write within one round trip."""
MESSAGES_PER_MINUTE = 1500
"""Of one node, over the whole run with its faults."""
LOOKUPS = 60
SEEDS_A_START = 10
"""Seeds that have the first ``SETTLED`` seconds in common, from 0 on."""


@dataclass
class Outcome:
    """What became of one run. Times in virtual seconds; ``rss`` is KiB of the whole process, its greatest."""

    seed: int
    faults: list[Fault]
    problems: list[str] = field(default_factory=list)
    together: float = 0.0
    found: float = 0.0
    messages: float = 0.0
    quiet_messages: float = 0.0
    acquires: int = 0
    changes: int = 0
    rss: int = 0
    digest: str = ""


class World:
    """``count`` nodes."""

    def __init__(self, count: int, rng: random.Random, clock: Loop, nursery: trio.Nursery) -> None:
        self.network = SimNetwork(0.002, rng, clock)
        self.consul = VirtualConsul(self.network, rng)
        self.nodes = [SimNode(number, self.network, self.consul, rng) for number in range(count)]
        self.problems: list[str] = []
        self._rng = rng
        self._nursery = nursery

    async def start(self, number: int) -> None:
        if not self.nodes[number].running:
            await self._nursery.start(self.nodes[number].run)

    async def late(self, number: int) -> None:
        await trio.sleep(self._rng.uniform(0, STARTS_WITHIN))
        await self.start(number)

    @property
    def running(self) -> list[SimNode]:
        return [node for node in self.nodes if node.running]

    async def watch_leaders(self) -> None:
        """No two that call themselves leaders and are fresh."""
        while True:
            leaders = [node.number for node in self.nodes if node.leads]
            if len(leaders) > 1 and trio.current_time() > self.consul.excused_until:
                self.problems.append(f"{trio.current_time():.2f} s: nodes {leaders} all lead")
                return
            await trio.sleep(0.25)

    def strangers(self) -> str | None:
        """Who does not know whom; None if there is one ring."""
        running = self.running
        ids = {node.kad._host.id: node.number for node in running}
        for node in running:
            lacking = [
                number for id, number in ids.items() if id != node.host.id and not node.kad._members.is_alive(id)
            ]
            if lacking:
                return f"node {node.number} does not know {len(lacking)} of {len(ids)}: {lacking[:5]}"
        return None

    def lost_key(self) -> str | None:
        """A key that some node would not find: none of those that it would ask has the record."""
        now = trio.current_time()
        routers = {node.host.id: node.kad for node in self.running}
        for node in self.running:
            for key in node.keys:
                raw = dht_key(key)
                at = position(raw)
                # all know all, so all ask out of the same, and each leaves out only itself
                near = node.kad._members.closest(at, 3 * REPLICAS)
                near = [id for id in near if id in routers]
                hold = [id for id in near[:REPLICAS] if node.host.id in routers[id]._records.providers(raw, now)]
                if len(hold) < min(2, len(routers) - 1):
                    return f"{key!r} of node {node.number} is at {len(hold)} of its {REPLICAS} nearest"
        return None

    async def look_up(self) -> str | None:
        """Real lookups from nodes by chance for keys of others."""
        running = self.running
        for _ in range(LOOKUPS):
            asker, owner = self._rng.sample(running, 2)
            with asker.router.lookup(owner.keys[0], count=1) as providers:
                found = [provider.peer_id async for provider in providers]
            if found != [owner.router.me.id]:
                return f"node {asker.number} does not find {owner.keys[0]!r}"
        return None

    async def settle(self, holds: str, until: float) -> float:
        """When ``strangers`` or ``lost_key`` has nothing to tell any more; notes it as a problem if never."""
        while problem := getattr(self, holds)():
            if trio.current_time() >= until:
                self.problems.append(f"{LIMIT:g} s after the last fault: {problem}")
                break
            await trio.sleep(1)
        return trio.current_time()


async def _run(
    count: int,
    start: int,
    branch: Callable[[], int],
    end: Callable[[Outcome], None],
    chosen: Collection[int] | None,
    window: float,
    clock: Loop,
) -> Outcome:
    rng = random.Random(start)
    async with trio.open_nursery() as nursery:
        world = World(count, rng, clock, nursery)
        for number in range(count):
            nursery.start_soon(world.late, number)
        nursery.start_soon(world.watch_leaders)
        await trio.sleep(SETTLED)
        seed = branch()
        for chance in (rng, random, clock):
            chance.seed(seed)
        planned = faults.plan(rng, count, SETTLED, window)
        if chosen is not None:
            planned = [fault for number, fault in enumerate(planned) if number in chosen]
        outcome = Outcome(seed, planned)
        async with trio.open_nursery() as trouble:
            for fault in planned:
                trouble.start_soon(_happen, world, fault)
        quiet = trio.current_time()
        outcome.together = await world.settle("strangers", quiet + LIMIT) - quiet
        outcome.found = await world.settle("lost_key", quiet + LIMIT) - quiet
        if not world.problems and (problem := await world.look_up()):
            world.problems.append(problem)
        sent = world.network.messages
        outcome.messages = sent / count / trio.current_time() * 60
        await trio.sleep(QUIET)
        outcome.quiet_messages = (world.network.messages - sent) / len(world.running) / QUIET * 60
        outcome.acquires, outcome.changes = world.consul.acquires, world.consul.changes
        _bounds(world, outcome)
        outcome.problems = world.problems
        outcome.rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        state = [(node.number, node.host.sent, len(node.kad._members)) for node in world.running]
        outcome.digest = hashlib.sha256(repr((state, world.consul.keys.index)).encode()).hexdigest()[:12]
        end(outcome)
        nursery.cancel_scope.cancel()
    return outcome


async def _happen(world: World, fault: Fault) -> None:
    await trio.sleep_until(fault.at)
    await faults.KINDS[fault.kind](world, fault)


def _bounds(world: World, outcome: Outcome) -> None:
    if outcome.acquires > ACQUIRES * outcome.changes + RACE:
        world.problems.append(f"{outcome.acquires} writes for {outcome.changes} changes of the leader")
    if outcome.messages > MESSAGES_PER_MINUTE:
        world.problems.append(f"{outcome.messages:.0f} messages per node and minute")
    leaders = Counter(node.candidate.view.session for node in world.running)
    if len(leaders) != 1:
        world.problems.append(f"they follow different leaders: {leaders.most_common(4)}")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """What else chance decides on is decided by ``seed``, and nothing is logged."""
    logging, chance = structlog.get_config(), random.getstate()
    random.seed(seed)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        yield
    finally:
        structlog.configure(**logging)
        random.setstate(chance)


def run(count: int, seed: int, chosen: Collection[int] | None = None, window: float = 90.0) -> Outcome:
    """One run of ``count`` nodes; ``chosen`` are the numbers of the faults that happen, by default all."""
    return _whole(count, seed // SEEDS_A_START, lambda: seed, lambda outcome: None, chosen, window)


def run_all(count: int, seeds: range, *, chosen: Collection[int] | None = None, jobs: int = 1) -> Iterator[Outcome]:
    """The same for each of ``seeds``, in processes of their own that share their start."""
    groups = [list(group) for _, group in itertools.groupby(seeds, lambda seed: seed // SEEDS_A_START)]

    def begin(number: int, forks: Forks) -> None:
        structlog.configure(cache_logger_on_first_use=True)  # which can't be undone, but this process ends
        _whole(count, groups[number][0] // SEEDS_A_START, forks.branch, forks.end, chosen)

    return Forks(groups, jobs, begin).run()


def _whole(
    count: int,
    start: int,
    branch: Callable[[], int],
    end: Callable[[Outcome], None],
    chosen: Collection[int] | None,
    window: float = 90.0,
) -> Outcome:
    with _seeded(start), shortcuts():
        return loop.run(partial(_run, count, start, branch, end, chosen, window), seed=start)


def shrink(count: int, outcome: Outcome) -> tuple[list[int], Outcome]:
    """The fewest faults, leaving out one after the other, with which something still fails."""
    chosen, least = list(range(len(outcome.faults))), outcome
    for number in list(chosen):
        fewer = [each for each in chosen if each != number]
        tried = run(count, outcome.seed, fewer)
        if tried.problems:
            chosen, least = fewer, tried
    return chosen, least

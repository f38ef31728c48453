"""What is measured on a ring."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.ring.fleet import Fleet, Member, each

_FORMATION = 60.0
_ANNOUNCEMENT = 60.0
_GONE = 20.0
_AT_ONCE = 16  # lookups; their first ones bring connections, and all nodes share this machine's cores


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. ``limit`` is what --check insists on, None if it is only told; ``at_least`` if more is better."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False

    @property
    def held(self) -> bool:
        """Whether it is within its limit."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything; seconds for ``idle`` and ``settle``."""

    nodes: int
    keys: int = 2000
    lookups: int = 300
    idle: float = 10.0
    settle: float = 15.0


def ring(plan: Plan) -> Iterator[Figure]:
    """A ring of ``plan.nodes``, from its formation to a death in it."""
    with Fleet(plan.nodes) as fleet:
        members = fleet.members
        yield from _formation(members)
        yield from _announcing(plan, members)
        yield from _lookups(plan, members)
        yield from _idling(plan, members)
        yield from _deaths(members)


def merging() -> Iterator[Figure]:
    """Two rings of four, and one join between them."""
    with Fleet(8) as fleet:
        left, right = fleet.members[:4], fleet.members[4:]
        for half in (left, right):
            each(half[1:], "join", [half[0].addr])
            each(half, "members", 3, _FORMATION)
        left[1].ask("announce", "left ", 1, _ANNOUNCEMENT)
        start = time.perf_counter()
        right[2].ask("join", [left[3].addr])
        counts = [count for _, count in each(fleet.members, "members", 7, _FORMATION)]
        took = time.perf_counter() - start if min(counts) == 7 else float("inf")
        yield Figure("two rings of four are one after a join", took, "s", 5.0)
        found = sum(left[1].id in found for ((_, _, found),) in each(right, "look_up", ["left 0"], 3, 0))
        yield Figure("nodes that find a key of the other ring", 100 * found / 4, "%", 100, at_least=True)


def _formation(members: Sequence[Member]) -> Iterator[Figure]:
    others = len(members) - 1
    start = time.perf_counter()
    each(members[1:], "join", [members[0].addr])
    known = [count for _, count in each(members, "members", others, _FORMATION)]
    yield Figure("ring formed", time.perf_counter() - start, "s")
    yield Figure("members known", 100 * min(known) / others, "%", 100, at_least=True)


def _announcing(plan: Plan, members: Sequence[Member]) -> Iterator[Figure]:
    took, cpu, missing = members[1].ask("announce", "many ", plan.keys, _ANNOUNCEMENT)
    # promised for 20 nodes; a hundred of them share two cores here
    yield Figure(f"{plan.keys} keys announced", took, "s", 5.0 if len(members) <= 50 else None)
    yield Figure("CPU of the announcing node", cpu, "s", 1.0)
    yield Figure("announcements not acknowledged", missing, "", 0)
    # one key of each node, for the lookups
    missing = sum(missing for _, _, missing in _announce_own(members))
    yield Figure("announcements of all nodes not acknowledged", missing, "", 0)


def _announce_own(members: Sequence[Member]) -> list[tuple[float, float, int]]:
    for member in members:
        member.tell("announce", f"of {member.id} ", 5, _ANNOUNCEMENT)
    return [member.answer() for member in members]


def _lookups(plan: Plan, members: Sequence[Member]) -> Iterator[Figure]:
    rng = random.Random(1)
    keys = [(member, f"of {member.id} {number}") for member in members for number in range(5)]
    client = members[-1]
    foreign = [(owner, key) for owner, key in keys if owner is not client]
    chosen = [rng.choice(foreign) for _ in range(plan.lookups)]
    client.ask("look_up", [key for _, key in foreign[:50]], 3, 0)
    answers = client.ask("look_up", [key for _, key in chosen], 3, 0.002)
    first = sorted(1e3 * first for first, _, _ in answers)
    hits = sum(owner.id in found for (owner, _), (_, _, found) in zip(chosen, answers, strict=True))
    yield Figure("lookup p50", first[len(first) // 2], "ms", 4.0)
    yield Figure("lookup p95", first[int(len(first) * 0.95)], "ms", 7.0)
    yield Figure("lookup p99", first[int(len(first) * 0.99)], "ms")
    yield Figure("slowest first provider", first[-1], "ms", 20.0)
    yield Figure("found by one node", 100 * hits / len(chosen), "%", 100, at_least=True)

    everybody = [
        (asker, rng.choice([pair for pair in keys if pair[0] is not asker])) for asker in members for _ in "1234"
    ]
    hits = 0
    for start in range(0, len(everybody), _AT_ONCE):
        group = everybody[start : start + _AT_ONCE]
        for asker, (_, key) in group:
            asker.tell("look_up", [key], 3, 0)
        for asker, (owner, _) in group:
            hits += owner.id in asker.answer()[0][2]
    name = f"found by every node, {_AT_ONCE} lookups at once"
    yield Figure(name, 100 * hits / len(everybody), "%", 100, at_least=True)

    unknown = sorted(1e3 * took for _, took, _ in client.ask("look_up", [f"x{n}" for n in range(50)], 3, 0.002))
    yield Figure("unknown key p50", unknown[25], "ms")
    yield Figure("unknown key, slowest", unknown[-1], "ms", 200.0)


def _idling(plan: Plan, members: Sequence[Member]) -> Iterator[Figure]:
    time.sleep(plan.settle)
    before = [member.cpu() for member in members]
    start = time.perf_counter()
    time.sleep(plan.idle)
    took = time.perf_counter() - start
    shares = sorted(100 * (member.cpu() - was) / took for member, was in zip(members, before, strict=True))
    yield Figure("idle CPU, mean", sum(shares) / len(shares), "%", 0.5)
    yield Figure("idle CPU, highest", shares[-1], "%")
    sizes = sorted(member.rss() for member in members)
    yield Figure("RSS, median", sizes[len(sizes) // 2] / 2**20, "MiB")
    yield Figure("RSS, highest", sizes[-1] / 2**20, "MiB")


def _deaths(members: Sequence[Member]) -> Iterator[Figure]:
    victim, stopped, asker = members[2], members[3], members[-1]
    for index, (member, number, name) in enumerate(
        [(victim, signal.SIGKILL, "killed -9"), (stopped, signal.SIGSTOP, "stopped")]
    ):
        key = f"of {member.id} 0"
        asker.ask("look_up", [key], 3, 0)
        member.signal(number)
        took, slowest = asker.ask("until_gone", key, member.id, _GONE)
        if index == 0:
            yield Figure(f"a provider that was {name} is offered for", took, "s", 1.0)
            yield Figure("slowest lookup meanwhile", 1e3 * slowest, "ms", 1000.0)
        else:
            yield Figure(f"a provider that was {name} is offered for", took, "s")

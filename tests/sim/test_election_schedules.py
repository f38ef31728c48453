# Thousands of random schedules of faults.  A schedule is its seed: what fails is told with it, and runs again alone.

"""What holds in an election whatever fails: one fresh leader at most, and soon after the last fault exactly one."""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from lab import thorough

from spegel_consul.election.election_view import ElectionSettings, State
from tests.sim.consulsim import Simulation

SCHEDULES = thorough.drawn(2_000, 20_000)
NODES = 3
SLACK = 2.0
"""Beyond two TTLs and the lock-delay: the spread, a refused attempt, and the ways there and back."""


@dataclass(frozen=True)
class Outcome:
    seed: int
    problem: str | None
    without_leader: float
    """Seconds from the last fault to a leader."""
    leaders: int


def run(seed: int) -> Outcome:
    """One schedule from its seed."""
    rng = random.Random(seed)
    settings = ElectionSettings(
        ttl=rng.choice([10.0, 15.0, 15.0, 30.0]),
        lock_delay=rng.choice([0.0, 0.5, 0.5, 10.0]),
        behavior=rng.choice(["release", "release", "delete"]),
    )
    world = Simulation(NODES, settings, rng, leader_service=rng.random() < 0.5)
    quiet = max([_fault(world, rng, rng.uniform(0, 60)) for _ in range(rng.randint(1, 6))])
    for number in range(NODES):
        if rng.random() < 0.7 or number == 0:
            world.at(quiet, lambda number=number: world.start(number))
    world.run(quiet)
    limit = 2 * settings.ttl + settings.lock_delay + SLACK
    leads = _first_leader(world, quiet + limit)
    world.run(max(world.now, quiet + limit) + settings.ttl)
    problem = world.violations[0] if world.violations else None
    if leads is None:
        problem = problem or f"no leader within {limit} s"
    return Outcome(seed, problem or _disagreement(world), (leads or world.now) - quiet, world.lock_index)


def _first_leader(world: Simulation, end: float) -> float | None:
    while world.now < end:
        if world.leaders():
            return world.now
        world.run(min(world.now + 0.2, end))
    return None


def _disagreement(world: Simulation) -> str | None:
    alive = [sidecar.election.view for sidecar in world.sidecars if sidecar.alive]
    states = sorted(view.state.value for view in alive)
    if states != sorted([State.LEADER.value] + [State.FOLLOWER.value] * (len(alive) - 1)):
        return f"{world.now:.1f} s: {states}"
    if len({(view.session, view.leader and view.leader.peer_id) for view in alive}) != 1:
        return f"{world.now:.1f} s: they follow different leaders"
    return None if all(view.fresh for view in alive) else f"{world.now:.1f} s: not all are fresh"


def _fault(world: Simulation, rng: random.Random, when: float) -> float:
    """Plan one fault; when it is over."""
    number, lasts = rng.randrange(NODES), rng.choice([0.2, 1.0, 3.0, 8.0, 20.0, 45.0]) * rng.uniform(0.5, 1.5)
    if rng.random() < 0.5:  # whoever leads then
        pick = lambda: leader[0].number if (leader := world.leaders()) else number  # noqa: E731
    else:
        pick = lambda: number  # noqa: E731
    kind = rng.choice(
        ["refused", "silent", "dead", "quorum", "server", "destroy", "delete", "junk", "kill", "restart", "stop"]
    )
    if kind in ("refused", "silent", "dead"):
        world.at(when, lambda: world.cut(pick(), kind, lasts))
        return when + lasts
    if kind == "quorum":
        world.at(when, lambda: world.lose_quorum(lasts))
        return when + lasts
    if kind in ("kill", "restart", "stop"):

        def end() -> None:
            victim = pick()
            world.stop(victim) if kind == "stop" else world.kill(victim)
            if kind != "kill":
                world.after(lasts, lambda: world.start(victim))

        world.at(when, end)
        return when if kind == "kill" else when + lasts
    at_once = {
        "server": world.new_server_leader,
        "destroy": world.destroy_session,
        "delete": world.delete_key,
        "junk": world.junk,
    }
    world.at(when, at_once[kind])
    return when


def _run_many(seeds: range) -> list[Outcome]:
    return [run(seed) for seed in seeds]


def test_schedules_of_faults() -> None:
    chunk = 250
    first = thorough.FIRST_SEED
    parts = [range(start, start + chunk) for start in range(first, first + SCHEDULES, chunk)]
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), mp_context=get_context("forkserver")) as pool:
        outcomes = [outcome for part in pool.map(_run_many, parts) for outcome in part]
    assert len(outcomes) == SCHEDULES
    broken = [f"seed {outcome.seed}: {outcome.problem}" for outcome in outcomes if outcome.problem]
    assert not broken, f"{len(broken)} of {SCHEDULES}: " + "; ".join(broken[:5])
    took = sorted(outcome.without_leader for outcome in outcomes)
    print(f"leader after the last fault: median {took[len(took) // 2]:.1f} s, longest {took[-1]:.1f} s")
    assert sum(outcome.leaders for outcome in outcomes) > 1.5 * SCHEDULES  # the faults did unseat leaders


def test_elections_among_the_servers_change_no_leader() -> None:
    """Not even while their new leader answers from a memory that has not caught up."""
    for seed in range(100):
        rng = random.Random(seed)
        world = Simulation(NODES, ElectionSettings(), rng, leader_service=rng.random() < 0.5)
        world.run(20)
        held = (world.holder, world.lock_index)
        for _ in range(5):
            world.lose_quorum(rng.uniform(0.1, 40))
            world.run(world.now + 48)
            assert (world.holder, world.lock_index) == held, f"seed {seed}"
            assert _disagreement(world) is None, f"seed {seed}: {_disagreement(world)}"

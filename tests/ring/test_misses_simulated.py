# The early end of a miss must not cost a hit.  A ring lives through churn while keys that were announced before are
# looked up, once with the early end and once without it.

import itertools
import random

import pytest
import trio
from conformance.router import eventually, find
from lab import thorough
from sim.network import SimNetwork
from trio.testing import MockClock

from spegel_consul.ring.members import member
from spegel_consul.ring.members.member import SETTLED
from spegel_consul.ring.router import KadRouter

# nodes, and rounds of churn
PLANS = [(30, 4), (200, 12)] if thorough.ALL else [(30, 3)]


class Ring:
    """Routers with identities of their own, which can be restarted with nothing but their identity."""

    def __init__(self, nursery: trio.Nursery, seed: int) -> None:
        self._nursery = nursery
        self.network = SimNetwork(rng=random.Random(seed))
        self.rng = random.Random(seed)
        self.routers: dict[int, KadRouter] = {}
        self.keys: dict[int, list[str]] = {}
        self._scopes: dict[int, tuple[trio.CancelScope, trio.Event]] = {}
        self._numbers = itertools.count(1)

    async def start(self, number: int | None = None, keys: int = 0) -> int:
        number = next(self._numbers) if number is None else number
        host = self.network.host(f"10.1.{number >> 8}.{number & 255}", number)
        router = KadRouter(host, registry=(host.address.host, 5000), rng=random.Random(number))
        scope, ended = trio.CancelScope(), trio.Event()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                with scope:
                    await router.run(task_status=task_status)
            finally:
                ended.set()

        await self._nursery.start(run)
        others = [*self.routers.values()]
        self.routers[number], self._scopes[number] = router, (scope, ended)
        if others:
            assert await router.join([self.rng.choice(others).me])
        self.keys.setdefault(number, [f"{number} {each}" for each in range(keys)])
        await router.announce(self.keys[number])
        return number

    async def kill(self, number: int) -> None:
        scope, ended = self._scopes.pop(number)
        del self.routers[number]
        scope.cancel()
        await ended.wait()

    @property
    def is_quiet(self) -> bool:
        living = len(self.routers) - 1
        return all(len(router.members()) == living and not router.unannounced for router in self.routers.values())


async def in_vain(
    nursery: trio.Nursery, size: int, rounds: int, *, seed: int = 7, lookups: int = 8
) -> tuple[int, int, int]:
    """The lookups of announced keys that found nothing, all such lookups, and the messages of the misses beside."""
    ring = Ring(nursery, seed)
    for _ in range(size):
        await ring.start(keys=3)
    await eventually(lambda: ring.is_quiet, within=120)
    await trio.sleep(2 * SETTLED)
    failed = made = messages = 0
    for _ in range(rounds):
        # one node leaves for good, one comes, and two lose all but their identity
        numbers = ring.rng.sample(sorted(ring.routers), 3)
        for number in numbers:
            await ring.kill(number)
        await trio.sleep(0.4)
        for number in numbers[1:]:
            await ring.start(number)
        await ring.start(keys=3)
        announced = {key: number for number in ring.routers for key in ring.keys[number]}
        for pause in (0.0, 0.3, 2.0, 4.0):
            # a key counts once its announcement, of this moment for a node that has just come, is done
            await eventually(lambda: not any(router.unannounced for router in ring.routers.values()))
            await trio.sleep(pause)
            for _ in range(lookups):
                asker = ring.rng.choice(sorted(ring.routers))
                key = ring.rng.choice([key for key, number in announced.items() if number != asker])
                failed += not await find(ring.routers[asker], key)
                made += 1
            before = ring.network.messages
            await find(ring.routers[ring.rng.choice(sorted(ring.routers))], f"nobody has {made}")
            messages += ring.network.messages - before
    for number in list(ring.routers):
        await ring.kill(number)
    return failed, made, messages


@pytest.mark.parametrize(("size", "rounds"), PLANS)
async def test_the_early_end_of_misses_costs_no_hit(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, size: int, rounds: int
) -> None:
    early, made, few = await in_vain(nursery, size, rounds)
    monkeypatch.setattr(member, "SETTLED", float("inf"))
    late, again, many = await in_vain(nursery, size, rounds)
    print(f"{size} nodes: {early} of {made} in vain, without the early end {late} of {again}; {few} / {many} messages")
    assert early <= late
    assert made == again
    assert few < many / 2

"""How much clients on other machines begin in one pass of the event loop."""

from __future__ import annotations

from collections import Counter

import trio
import trio.testing

from spegel_consul.http.server.fair_turns import MOST, PASS, Turns


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def begun(turns: Turns, clock: Clock, clients: dict[str, int], passes: int, cost: float) -> list[list[str]]:
    """Who has begun in each of the passes, if what each begins takes ``cost`` seconds."""
    found: list[list[str]] = []

    class Passes(trio.abc.Instrument):
        def after_io_wait(self, timeout: float) -> None:
            found.append([])

    async def client(address: str) -> None:
        while True:
            await turns.take(address)
            found[-1].append(address)
            clock.now += cost
            await trio.lowlevel.checkpoint()

    trio.lowlevel.add_instrument(instrument := Passes())
    async with trio.open_nursery() as nursery:
        for address, count in clients.items():
            for _ in range(count):
                nursery.start_soon(client, address)
        while len(found) < passes:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(instrument)
    assert turns.waiting == 0, "who is cancelled does not wait any more"
    return found


async def test_a_pass_has_a_bounded_number_of_beginnings() -> None:
    turns = Turns(clock := Clock())
    found = await begun(turns, clock, {"10.0.0.1": 500}, 50, 0.0)
    assert max(map(len, found)) <= 2 * MOST, "of two passes, where the loop has slept in between"
    assert sum(map(len, found)) > 10 * MOST


async def test_costly_work_makes_fewer_turns_and_cheap_work_more_again() -> None:
    turns = Turns(clock := Clock())
    costly = await begun(turns, clock, {"10.0.0.1": 500}, 60, 10 * PASS)
    assert max(map(len, costly[20:])) <= 2
    assert sum(map(len, costly[20:])) >= 10, "it goes on all the same"
    cheap = await begun(turns, clock, {"10.0.0.1": 500}, 100, 0.0)
    assert max(map(len, cheap[60:])) >= MOST // 2


async def test_an_address_with_many_connections_waits_for_its_own() -> None:
    turns = Turns(clock := Clock())
    found = await begun(turns, clock, {"10.0.0.1": 1000, "10.0.0.2": 1, "10.0.0.3": 5}, 100, PASS)
    by_address = Counter(address for each in found[20:] for address in each)
    assert by_address["10.0.0.2"] >= by_address["10.0.0.1"] / 4
    assert by_address["10.0.0.3"] >= by_address["10.0.0.1"] / 4


async def test_who_is_alone_waits_for_nothing(autojump_clock: trio.testing.MockClock) -> None:
    turns = Turns()
    for _ in range(1000):
        await turns.take("10.0.0.1")
        await trio.lowlevel.checkpoint()
    assert trio.current_time() == 0

from __future__ import annotations

import pytest
import trio

from spegel_consul.ring.net.send_queue import Outbox, OutboxFull


async def take_all(outbox: Outbox, taken: list[bytes]) -> None:
    while data := await outbox.take():
        taken.append(data)
    taken.append(b"")


async def test_what_waits_is_taken_at_once_and_in_order() -> None:
    outbox = Outbox()
    for piece in (b"one ", b"two ", b"", b"three"):
        outbox.put(piece)
    assert await outbox.take() == b"one two three"


async def test_who_takes_waits_until_something_is_put(nursery: trio.Nursery) -> None:
    outbox, taken = Outbox(), list[bytes]()
    nursery.start_soon(take_all, outbox, taken)
    await trio.testing.wait_all_tasks_blocked()
    assert taken == []
    outbox.put(b"")
    await trio.testing.wait_all_tasks_blocked()
    assert taken == [], "nothing is no end"
    outbox.put(b"first")
    await trio.testing.wait_all_tasks_blocked()
    outbox.put(b"second")
    await trio.testing.wait_all_tasks_blocked()
    assert taken == [b"first", b"second"]


@pytest.mark.parametrize("waits", [True, False])
async def test_what_was_put_before_the_end_is_still_taken(nursery: trio.Nursery, waits: bool) -> None:
    outbox, taken = Outbox(), list[bytes]()
    if waits:
        nursery.start_soon(take_all, outbox, taken)
        await trio.testing.wait_all_tasks_blocked()
    outbox.put(b"last")
    outbox.close()
    outbox.close()
    if not waits:
        nursery.start_soon(take_all, outbox, taken)
    await trio.testing.wait_all_tasks_blocked()
    assert taken == [b"last", b""]
    assert outbox.closed
    assert await outbox.take() == b"", "and so it stays"


async def test_what_does_not_fit_is_refused_whole() -> None:
    outbox = Outbox(10)
    outbox.put(b"12345678")
    with pytest.raises(OutboxFull, match="more than 10 bytes"):
        outbox.put(b"abc")
    outbox.put(b"90")
    with pytest.raises(OutboxFull):
        outbox.put(b"x")
    assert await outbox.take() == b"1234567890"
    outbox.put(b"0123456789")
    assert await outbox.take() == b"0123456789"


async def test_who_leaves_while_it_waits_takes_nothing_along() -> None:
    outbox, scope = Outbox(), trio.CancelScope()
    taken: list[bytes] = []

    async def take() -> None:
        with scope:
            taken.append(await outbox.take())

    for put_first in (True, False):
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            if put_first:
                outbox.put(b"kept")
                scope.cancel()
            else:
                scope.cancel()
                outbox.put(b"kept")
    left = [] if len(taken) == 2 else [await outbox.take()]
    assert [*taken, *left] == [b"kept", b"kept"]

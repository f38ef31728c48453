# The value of a task, and waiters that go: a deadline and a value meet in one pass of the loop.

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.ring.net.host import Replaced, Unreachable
from spegel_consul.ring.net.shared_result import Result


async def test_all_who_wait_get_the_value_and_so_do_those_who_come_later(nursery: trio.Nursery) -> None:
    result: Result[int] = Result()
    got: list[int] = []

    async def wait() -> None:
        got.append(await result.wait())

    for _ in range(3):
        nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not result.done
    result.set(7)
    result.set(8)
    result.fail(Unreachable("too late"))
    await trio.testing.wait_all_tasks_blocked()
    assert result.done
    assert got == [7, 7, 7]
    assert await result.wait() == 7


async def test_each_who_waits_gets_its_own_error() -> None:
    result: Result[int] = Result()
    result.fail(Replaced("others are there"))
    result.set(1)
    errors = []
    for _ in range(2):
        with pytest.raises(Replaced, match="others are there") as caught:
            await result.wait()
        errors.append(caught.value)
    assert errors[0] is not errors[1]


@pytest.mark.parametrize("order", ["waiter", "deadline", "value"])
async def test_what_comes_as_its_waiter_leaves_is_given_back(order: str) -> None:
    """A scope that is cancelled before the value is set, in one step: the waiter has left and has not run yet."""
    given_back: list[str] = []
    result: Result[str] = Result(unwanted=given_back.append)
    got: list[str] = []
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            got.append(await result.wait())

    async with trio.open_nursery() as nursery:
        if order != "waiter":
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        if order == "deadline":
            scope.cancel()
        result.set("value")
        scope.cancel()
    assert (got, given_back) == ((["value"], []) if order == "value" else ([], ["value"]))


async def test_what_is_set_a_second_time_is_given_back_too(nursery: trio.Nursery) -> None:
    given_back: list[str] = []
    result: Result[str] = Result(unwanted=given_back.append)
    nursery.start_soon(result.wait)
    await trio.testing.wait_all_tasks_blocked()
    result.set("first")
    result.set("second")
    await trio.testing.wait_all_tasks_blocked()
    assert given_back == ["second"]


async def test_of_several_who_wait_one_that_stays_is_enough() -> None:
    given_back: list[str] = []
    result: Result[str] = Result(unwanted=given_back.append)
    scope = trio.CancelScope()
    got: list[str] = []

    async def leave() -> None:
        with scope:
            await result.wait()

    async def stay() -> None:
        got.append(await result.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        nursery.start_soon(stay)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        result.set("value")
    assert (got, given_back) == (["value"], [])


async def test_whatever_meets_in_one_pass_each_value_is_taken_once_or_given_back(autojump_clock: MockClock) -> None:
    rng, taken, given_back = random.Random(3), 0, 0

    def back(_: int) -> None:
        nonlocal given_back
        given_back += 1

    async def bring(result: Result[int], after: float) -> None:
        await trio.sleep(after)
        for _ in range(rng.randrange(3)):
            await trio.lowlevel.checkpoint()
        result.set(1)

    for _ in range(600):
        result: Result[int] = Result(unwanted=back)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring, result, 1.0)
            with trio.move_on_after(1.0 + rng.choice((-0.1, 0, 0, 0, 0.1))):
                for_one = result.wait()
                taken += await for_one
    assert taken + given_back == 600
    assert min(taken, given_back) > 100

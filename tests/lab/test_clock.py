"""The clock of tests that share one event loop."""

from __future__ import annotations

import time

import trio
import trio.testing

from lab.clock import STEP, LoopClock


async def test_each_test_has_it_that_has_chosen_none() -> None:
    assert isinstance(trio.lowlevel.current_clock(), LoopClock)


async def test_another_one_goes_before(autojump_clock: trio.testing.MockClock) -> None:
    await trio.sleep(1000)


async def test_a_loop_that_does_not_turn_is_not_late() -> None:
    with trio.move_on_after(2 * STEP) as scope:
        for _ in range(3):
            time.sleep(0.2)  # as a loop that gets no CPU
    assert trio.current_time() < scope.deadline
    with trio.move_on_after(10 * STEP) as scope:
        while True:
            time.sleep(2 * STEP)
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught, "time passes with its turns"


async def test_who_sleeps_does_not_wake_early() -> None:
    began, now = time.perf_counter(), trio.current_time()
    await trio.sleep(0.3)
    assert time.perf_counter() - began >= 0.29
    assert trio.current_time() - now >= 0.3


async def test_the_others_can_be_waited_for() -> None:
    await trio.testing.wait_all_tasks_blocked(0.05)

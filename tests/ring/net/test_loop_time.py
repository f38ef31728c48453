# Timeouts when the loop has all the time that it wants, and when it has not.

from __future__ import annotations

import math

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from spegel_consul.ring.net.loop_time import LONGEST, TICK, LoopTime


def patience(nursery: trio.Nursery) -> LoopTime:
    return LoopTime(nursery.start_soon)


async def test_a_timeout_ends_what_takes_too_long(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    subject = patience(nursery)
    for seconds in (0.5, 3.0):
        await trio.sleep(0.03)
        start = trio.current_time()
        with pytest.raises(trio.TooSlowError), subject.fail_after(seconds):
            await trio.sleep_forever()
        assert seconds <= trio.current_time() - start <= seconds + 2 * TICK


async def test_what_is_in_time_is_left_alone(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    subject = patience(nursery)
    for _ in range(100):
        with subject.fail_after(0.2):
            await trio.sleep(0.19)
    await trio.sleep(1)
    assert len(nursery.child_tasks) == 0, "nothing ticks while nobody waits"


async def test_many_at_once_share_one_task(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    subject, ended = patience(nursery), []

    async def wait(seconds: float) -> None:
        start = trio.current_time()
        with pytest.raises(trio.TooSlowError), subject.fail_after(seconds):
            await trio.sleep_forever()
        ended.append((seconds, trio.current_time() - start))

    async with trio.open_nursery() as waiters:
        for number in range(50):
            waiters.start_soon(wait, 0.1 * (number + 1))
            await trio.sleep(0.001)
        assert len(nursery.child_tasks) == 1
    assert len(ended) == 50
    assert all(seconds <= took <= seconds + 2 * TICK + 0.001 for seconds, took in ended)


async def late_turns(clock: MockClock, seconds: float, count: float = math.inf) -> None:
    """Turns of the loop, each of which comes ``seconds`` late: something else had the CPU."""
    done = 0
    while done < count:
        await trio.lowlevel.checkpoint()
        clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()
        done += 1


async def test_time_in_which_nobody_listened_does_not_count(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """An answer that takes ten turns of the loop, each of them late, comes in time."""
    subject = patience(nursery)
    with subject.fail_after(0.6):
        await late_turns(mock_clock, 0.15, 10)


async def test_no_loop_is_so_late_that_nothing_ends(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    subject = patience(nursery)
    start = trio.current_time()
    with pytest.raises(trio.TooSlowError), subject.fail_after(0.2):
        await late_turns(mock_clock, 0.6)
    assert 1.0 < trio.current_time() - start < LONGEST * 0.2 + 1

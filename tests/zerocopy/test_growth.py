"""One look at all growing files, whatever the number of tasks that wait."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.growth import POLL, Growth


class File(GrowingFile):
    """A file of which each look is counted."""

    def __init__(self) -> None:
        super().__init__(-1, 100)
        self.bytes = 0
        self.looks = 0
        self.lost = False

    def size(self) -> int:
        self.looks += 1
        if self.lost:
            raise OSError("lost")
        return self.bytes


class Waiters:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.growth = Growth()
        self.nursery = nursery
        self.ended: dict[str, float] = {}
        self.scopes: dict[str, trio.CancelScope] = {}

    async def add(self, name: str, file: File, until: float = 10.0) -> None:
        async def wait(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as self.scopes[name]:
                task_status.started()
                now = trio.current_time()
                await self.growth.wait(file, file.bytes, now, now + until)
                self.ended[name] = trio.current_time()

        await self.nursery.start(wait)
        await trio.lowlevel.checkpoint()


@pytest.fixture
async def waiters(nursery: trio.Nursery) -> Waiters:
    return Waiters(nursery)


async def test_many_that_wait_are_woken_within_one_look(autojump_clock: MockClock, waiters: Waiters) -> None:
    file, other = File(), File()
    for number in range(64):
        await waiters.add(f"{number}", file if number % 2 else other)
    await trio.sleep(0.5)
    assert not waiters.ended
    file.bytes, now = 1, trio.current_time()
    await trio.sleep(2 * POLL)
    assert sorted(map(int, waiters.ended)) == list(range(1, 64, 2))
    assert max(waiters.ended.values()) <= now + POLL * 1.01
    other.lost = True
    await trio.sleep(2 * POLL)
    assert len(waiters.ended) == 64


async def test_the_loop_wakes_for_one_of_them_only(autojump_clock: MockClock, waiters: Waiters) -> None:
    class Steps(trio.abc.Instrument):
        count = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.count += 1

    for _ in range(64):
        await waiters.add(f"{_}", File())
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await trio.sleep(0.5)
    trio.lowlevel.remove_instrument(steps)
    assert steps.count <= 60


@pytest.mark.parametrize("how", ["grows", "is cancelled", "is late"])
async def test_another_one_looks_when_the_looking_one_leaves(
    autojump_clock: MockClock, waiters: Waiters, how: str
) -> None:
    first, second, third = File(), File(), File()
    await waiters.add("first", first, until=0.3 if how == "is late" else 10.0)
    await waiters.add("second", second, until=0.3 if how == "is late" else 10.0)
    await waiters.add("third", third)
    await trio.sleep(0.1)
    if how == "grows":
        first.bytes = second.bytes = 1
    elif how == "is cancelled":
        waiters.scopes["first"].cancel()
        waiters.scopes["second"].cancel()
    await trio.sleep(0.3)
    third.bytes, now = 1, trio.current_time()
    await trio.sleep(0.1)
    assert now < waiters.ended["third"] <= now + POLL * 1.01


async def test_a_file_that_stands_still_is_looked_at_less_often(autojump_clock: MockClock, waiters: Waiters) -> None:
    file = File()
    await waiters.add("one", file)
    await trio.sleep(1)
    before = file.looks
    await trio.sleep(1)
    assert 18 <= file.looks - before <= 22
    file.bytes, now = 1, trio.current_time()
    await trio.sleep(0.1)
    assert waiters.ended["one"] <= now + 0.051


async def test_the_time_of_a_wait_ends(autojump_clock: MockClock, waiters: Waiters) -> None:
    await waiters.add("one", File(), until=0.25)
    await trio.sleep(0.3)
    assert waiters.ended["one"] == pytest.approx(0.25)

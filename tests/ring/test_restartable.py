"""The router that is replaced while it serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from trio.testing import MockClock

from spegel_consul.ring.restartable import ReplaceableRouter


class Generation:
    """A router that fails when it is told to."""

    me = None
    unannounced = 0

    def __init__(self, number: int) -> None:
        self.number = number
        self.runs = False
        self.fails = trio.Event()

    def members(self) -> Sequence[str]:
        return ["a", "b"] if self.number != 1 else ["a"]  # the second one has not found all yet

    async def join(self, peers: Sequence[object]) -> int:
        return 1

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.runs = True
        task_status.started()
        try:
            await self.fails.wait()
            raise ValueError("a fault")
        finally:
            self.runs = False


async def test_a_failure_during_a_restart_leaves_the_generation_that_runs(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    made: list[Generation] = []

    def make(_: object) -> Any:
        made.append(Generation(len(made)))
        return made[-1]

    router = ReplaceableRouter(make)

    async def stage(*, task_status: trio.TaskStatus[None]) -> None:
        while True:
            try:
                await router.run(task_status=task_status)
            except* ValueError:
                task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(0.3)

    async def fail() -> None:
        await trio.sleep(5)
        made[0].fails.set()

    await nursery.start(stage)
    nursery.start_soon(fail)
    assert not await router.restart([])
    await trio.sleep(1)
    assert [each.number for each in made if each.runs] == [2]
    assert router._current.router is made[2]

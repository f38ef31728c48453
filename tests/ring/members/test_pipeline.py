"""Questions to one peer over one stream."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from spegel_consul.multiaddrs import Address
from spegel_consul.ring.dht.messages import frame
from spegel_consul.ring.members.pipeline import Pipeline
from spegel_consul.ring.net.host import Take

QUESTIONS = 50


class Hoarder:
    """A peer that answers when it has all questions, so that a read never has to wait; host and stream in one."""

    def __init__(self) -> None:
        self.asked = self.answered = 0
        self.full = trio.Event()

    async def open(self, peer: bytes, addresses: Sequence[Address], protocol: str) -> Hoarder:
        await trio.lowlevel.checkpoint()
        return self

    def send(self, data: bytes) -> None:
        self.asked += 1
        if self.asked == QUESTIONS:
            self.full.set()

    async def receive(self, take: Take | None = None) -> bytes:
        if not self.full.is_set():
            await self.full.wait()
        if self.answered == QUESTIONS:
            await trio.sleep_forever()
        self.answered += 1
        return frame(b"answer")

    def reset(self) -> None:
        pass


async def test_answers_that_have_all_arrived_do_not_keep_the_others_waiting(nursery: trio.Nursery) -> None:
    peer, since, most = Hoarder(), 0, 0

    def decode(body: bytes) -> bytes:
        nonlocal since, most
        since += 1
        most = max(most, since)
        return body

    async def others() -> None:
        nonlocal since
        while True:
            since = 0
            await trio.lowlevel.checkpoint()

    pipeline = Pipeline(peer, b"peer", lambda: (), "/protocol", nursery.start_soon, decode)  # type: ignore[arg-type]
    nursery.start_soon(others)
    async with trio.open_nursery() as asking:
        for _ in range(QUESTIONS):
            asking.start_soon(pipeline.ask, b"question")
    assert 0 < most <= 2

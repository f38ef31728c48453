"""The shell around one lookup: when the task that iterates wakes up."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from spegel_consul.ring.dht.iterative_lookup import HEDGE, AnswerTimes, Lookup
from spegel_consul.ring.key_search import KeySearch
from spegel_consul.ring.members.membership import Told


async def test_candidates_that_an_answer_names_are_hedged_though_none_was_left(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    candidates = [b"a", b"b", b"c"]
    asked: list[tuple[bytes, Told]] = []
    lookup = Lookup(lambda: list(candidates), count=3, exclude=b"me", settled=lambda peer: True)
    search = KeySearch(
        lookup,
        AnswerTimes(),
        lambda peer, told: asked.append((peer, told)),
        lambda *_: None,
        lambda _: None,
        set(),
    )

    async def iterate() -> None:
        async for _ in search:
            pass

    with search:
        nursery.start_soon(iterate)
        await trio.sleep(1)
        assert len(asked) == 3, "there was nobody else to ask"
        candidates += [b"d", b"e", b"f", b"g"]
        asked[0][1](None)
        assert len(asked) == 4
        await trio.sleep(1.5 * HEDGE)
        assert len(asked) > 4, "the one that was asked last does not answer"
    nursery.cancel_scope.cancel()

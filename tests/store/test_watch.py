from __future__ import annotations

import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.store import Changed
from spegel_consul.store.watchers import Watch, Watchers

NAMES = st.frozensets(st.sampled_from("abcde"))


@given(NAMES, st.lists(st.tuples(NAMES, st.booleans())))
def test_a_watcher_that_looks_now_and_then_knows_what_is_there(
    present: frozenset[str], steps: list[tuple[frozenset[str], bool]]
) -> None:
    async def follow() -> None:
        watch = Watch(present)
        now, known = present, frozenset[str]()
        for after, looks in [*steps, (present, True)]:
            watch.fold(Changed(after - now, now - after))
            now = after
            if looks:
                changed = await anext(watch)
                assert not changed.added & changed.removed
                assert not changed.added & known
                assert changed.removed <= known
                known = (known | changed.added) - changed.removed
                assert known == now

    trio.run(follow)


async def test_first_item_comes_at_once_and_the_next_waits(autojump_clock: trio.testing.MockClock) -> None:
    watchers = Watchers()
    with watchers.watch(frozenset()) as watch:
        assert await anext(watch) == Changed(frozenset(), frozenset())
        watchers.publish(Changed(frozenset(), frozenset()))
        with trio.move_on_after(10) as scope:
            await anext(watch)
        assert scope.cancelled_caught
        watchers.publish(Changed(frozenset("a"), frozenset()))
        assert await anext(watch) == Changed(frozenset("a"), frozenset())


async def test_cancelled_wait_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    watchers = Watchers()
    with watchers.watch(frozenset("a")) as watch:
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(watch)
        assert await anext(watch) == Changed(frozenset("a"), frozenset())


async def test_a_watch_that_ended_is_told_nothing() -> None:
    watchers = Watchers()
    with watchers.watch(frozenset()):
        pass
    watchers.publish(Changed(frozenset("a"), frozenset()))

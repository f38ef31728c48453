from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.ring.members.timer_heap import TimerHeap


class Thing:
    def __init__(self, due_at: float) -> None:
        self.due_at = due_at
        self.noted = math.inf


_MOMENTS = st.one_of(st.integers(0, 30), st.just(math.inf))


@given(st.lists(st.tuples(st.integers(0, 4), _MOMENTS, st.booleans()), max_size=60))
def test_whoever_is_due_is_named_once_however_moments_move(steps: list[tuple[int, float, bool]]) -> None:
    timers: TimerHeap[Thing] = TimerHeap()
    things = [Thing(math.inf) for _ in range(5)]
    for now, (number, moment, look) in enumerate(steps):
        things[number].due_at = moment
        timers.note(things[number])
        assert timers.next() == min(thing.due_at for thing in things)
        if look:
            due = timers.due(now)
            assert [thing.due_at for thing in due] == sorted(thing.due_at for thing in things if thing.due_at <= now)
            assert len(set(map(id, due))) == len(due)
            for thing in due:
                thing.due_at = math.inf


def test_what_is_put_off_again_and_again_has_one_entry() -> None:
    timers: TimerHeap[Thing] = TimerHeap()
    thing = Thing(10)
    timers.note(thing)
    for moment in range(10, 1000):
        thing.due_at = moment
        timers.note(thing)
        assert timers.due(moment - 1) == []
    assert len(timers._heap) == 1
    assert timers.due(999) == [thing]

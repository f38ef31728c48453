"""A dictionary that forgets its oldest entries."""

from __future__ import annotations

from spegel_consul.bounded_dict import BoundedDict


def test_the_oldest_entries_are_forgotten() -> None:
    memory: BoundedDict[int, str] = BoundedDict(3)
    for number in range(1000):
        memory[number] = str(number)
        assert len(memory) <= 3
    assert dict(memory) == {997: "997", 998: "998", 999: "999"}


def test_a_key_that_is_set_again_is_the_newest_and_displaces_nothing() -> None:
    memory: BoundedDict[str, int] = BoundedDict(2)
    memory["a"], memory["b"] = 1, 1
    memory["a"] = 2
    assert dict(memory) == {"a": 2, "b": 1}
    memory["c"] = 1
    assert dict(memory) == {"a": 2, "c": 1}


def test_reading_does_not_make_an_entry_newer() -> None:
    memory: BoundedDict[str, int] = BoundedDict(2)
    memory["a"], memory["b"] = 1, 1
    assert (memory["a"], memory.get("a"), "a" in memory, memory.get("x")) == (1, 1, True, None)
    memory["c"] = 1
    assert list(memory) == ["b", "c"]


def test_what_is_removed_makes_room() -> None:
    memory: BoundedDict[str, int] = BoundedDict(2)
    memory["a"], memory["b"] = 1, 1
    assert memory.pop("a") == 1
    memory["c"] = 1
    assert list(memory) == ["b", "c"]


def test_entries_that_are_over_go_with_time_and_not_with_the_limit() -> None:
    memory: BoundedDict[int, int] = BoundedDict(1000)
    for now in range(500):
        memory.drop_oldest(lambda at, now=now: now - at > 10)  # type: ignore[misc]
        memory[now] = now
    assert list(memory) == list(range(489, 500))


def test_dropping_costs_two_entries_at_most_and_none_of_an_empty_memory() -> None:
    memory: BoundedDict[int, int] = BoundedDict(1000)
    memory.drop_oldest(lambda at: True)
    for number in range(5):
        memory[number] = number
    memory.drop_oldest(lambda at: True)
    assert list(memory) == [2, 3, 4]
    memory.drop_oldest(lambda at: at != 3)
    assert list(memory) == [3, 4]

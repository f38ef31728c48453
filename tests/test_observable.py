import trio
import trio.testing

from spegel_consul.observable import Observable


async def test_a_waiter_is_told_a_change() -> None:
    answer = Observable("a")
    told: list[str] = []

    async def wait() -> None:
        told.append(await answer.changed("a"))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not answer.set("a")
            await trio.testing.wait_all_tasks_blocked()
            assert told == []
            assert answer.set("b")
    assert told == ["b", "b"]


async def test_a_change_before_the_wait_is_not_lost() -> None:
    answer = Observable(1)
    known = answer.value
    answer.set(2)
    with trio.fail_after(5):
        assert await answer.changed(known) == 2


async def test_a_value_that_came_back_is_no_change() -> None:
    answer = Observable(1)
    with trio.move_on_after(5) as waiting:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer.changed, 1)
            await trio.testing.wait_all_tasks_blocked()
            answer.set(2)
            answer.set(1)
    assert waiting.cancelled_caught
    assert answer.value == 1


async def test_only_the_key_counts() -> None:
    answer = Observable[list[int]]([1, 2], sorted)
    first = answer.value
    assert not answer.set([2, 1])
    assert answer.value is first
    assert answer.set([3])
    with trio.fail_after(5):
        assert await answer.changed([2, 1]) == [3]

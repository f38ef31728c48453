# Addresses that do not answer, and how long others wait because of them.

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.ring.net.dialler import (
    DIAL_BACKOFF,
    DIAL_TIMEOUT,
    FIRST_TIMEOUT,
    HANDSHAKE,
    HANDSHAKE_BACKOFF,
    MAX_DIALS,
    MAX_HANDSHAKES,
    MAX_LATE_DIALS,
    Dialler,
    NoAnswer,
)


class World:
    """What ``trio.open_tcp_stream`` reaches: hosts that answer after so many seconds; nobody is elsewhere."""

    def __init__(self) -> None:
        self.answers: dict[str, float] = {}
        self.dials: list[tuple[str, int]] = []
        self.waiting = 0

    async def open_tcp_stream(self, host: str, port: int) -> object:
        self.dials.append((host, port))
        self.waiting += 1
        try:
            await trio.sleep(self.answers.get(host, float("inf")))
        finally:
            self.waiting -= 1
        return (host, port)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(trio, "open_tcp_stream", world.open_tcp_stream)
    return world


async def dial(dialler: Dialler, host: str, port: int = 1, *, named: bool = False) -> float:
    """Seconds until ``host`` answered."""
    start = trio.current_time()
    await dialler.connect(host, port, named=named)
    return trio.current_time() - start


async def give_up(dialler: Dialler, host: str, port: int = 1, *, named: bool = False) -> None:
    with pytest.raises(NoAnswer):
        await dialler.connect(host, port, named=named)


async def test_those_who_are_gone_do_not_delay_the_living(world: World, autojump_clock: MockClock) -> None:
    world.answers = {"known": 0.001, "stranger": 0.001, "named": 0.001}
    dialler = Dialler()
    await dial(dialler, "known")
    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(give_up, dialler, f"gone {number}")
        await trio.sleep(0.01)
        assert await dial(dialler, "known") < 0.01
        assert await dial(dialler, "named", named=True) < 0.01
        assert await dial(dialler, "stranger") < 300 / MAX_DIALS * FIRST_TIMEOUT + 0.01
    assert world.waiting == 0


async def test_a_rack_of_known_hosts_that_vanishes_is_waited_for_apart(world: World, autojump_clock: MockClock) -> None:
    dialler = Dialler()
    rack = [f"host {number}" for number in range(100)]
    world.answers = dict.fromkeys([*rack, "other"], 0.001)
    for host in [*rack, "other"]:
        await dial(dialler, host)
    world.answers = {"other": 0.001}
    async with trio.open_nursery() as nursery:
        for host in rack:
            nursery.start_soon(give_up, dialler, host)
        await trio.sleep(0.01)
        assert await dial(dialler, "other") < 100 / MAX_DIALS * FIRST_TIMEOUT + 0.01
        await trio.sleep(DIAL_TIMEOUT + 2)
        assert world.waiting == 0
        # from now on they are strangers again, who do not delay it at all
        for host in rack:
            nursery.start_soon(give_up, dialler, host, 2)
        await trio.sleep(0.01)
        assert await dial(dialler, "other") < 0.01


async def test_ports_of_a_host_that_lives_do_not_delay_the_others(world: World, autojump_clock: MockClock) -> None:
    dialler = Dialler()
    dialler.heard_from("hostile")
    dialler.heard_from("other")
    world.answers = {"other": 0.001}
    async with trio.open_nursery() as nursery:
        for port in range(300):
            nursery.start_soon(give_up, dialler, "hostile", port)
        await trio.sleep(0.01)
        assert await dial(dialler, "other") < 0.01


async def test_who_is_slow_to_answer_is_reached_all_the_same(world: World, autojump_clock: MockClock) -> None:
    world.answers = {"far away": 2 * FIRST_TIMEOUT}
    assert await dial(Dialler(), "far away") == pytest.approx(3 * FIRST_TIMEOUT)


async def test_an_address_that_did_not_answer_rests_unless_it_is_named(world: World, autojump_clock: MockClock) -> None:
    dialler = Dialler()
    await give_up(dialler, "gone")
    dialled = len(world.dials)
    for _ in range(100):
        await give_up(dialler, "gone")
    assert len(world.dials) == dialled
    world.answers = {"gone": 0.001}
    assert await dial(dialler, "gone", 2) < 0.01, "another port may be another's"
    await trio.sleep(DIAL_BACKOFF)
    await dial(dialler, "gone")
    world.answers = {}
    await give_up(dialler, "named", named=True)
    world.answers = {"named": 0.001}
    await dial(dialler, "named", named=True)


async def test_what_is_waited_for_and_remembered_is_bounded(world: World, autojump_clock: MockClock) -> None:
    dialler = Dialler()
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, world.waiting)
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with trio.open_nursery() as dials:
            for number in range(4500):
                dials.start_soon(give_up, dialler, f"gone {number}")
        nursery.cancel_scope.cancel()
    assert MAX_DIALS < most <= 2 * MAX_DIALS + MAX_LATE_DIALS
    assert len(dialler._backoff_until) == 4096


async def test_who_accepts_and_says_nothing_delays_neither_the_known_nor_strangers_much(
    world: World, autojump_clock: MockClock
) -> None:
    dialler = Dialler()
    start = trio.current_time()

    async def shake_hands(*, known: bool) -> float:
        await dialler.handshake(trio.lowlevel.checkpoint, known=known)
        return trio.current_time() - start

    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(lambda: dialler.handshake(trio.sleep_forever, known=False))
        await trio.sleep(0.01)
        assert await shake_hands(known=True) < 0.02
        assert await shake_hands(known=False) < 60 / MAX_HANDSHAKES * HANDSHAKE + 0.1
    world.answers = {"mute": 0.001}
    await dial(dialler, "mute")
    assert dialler.has_heard_from("mute")
    dialler.handshake_timed_out("mute", 1)
    assert not dialler.has_heard_from("mute")
    await trio.sleep(HANDSHAKE_BACKOFF - 0.1)
    await give_up(dialler, "mute")
    await trio.sleep(0.2)
    await dial(dialler, "mute")


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port of all of 127.0.0.0/8 that answers no SYN: its queue of one connection is full."""
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(8)]
        for sock in fillers:
            sock.setblocking(False)
            assert sock.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
        yield port
        for sock in fillers:
            sock.close()


async def test_real_sockets_that_nobody_answers(black_hole: int) -> None:
    dialler = Dialler()
    addresses = itertools.product(range(1, 4), range(1, 101))
    with socket.create_server(("127.0.0.1", 0)) as living:
        port = living.getsockname()[1]
        async with trio.open_nursery() as nursery:
            for third, fourth in addresses:
                nursery.start_soon(give_up, dialler, f"127.9.{third}.{fourth}", black_hole)
            await trio.sleep(0.1)
            stream = await dialler.connect("127.0.0.1", port, named=True)
            assert dialler._unproven.borrowed_tokens == MAX_DIALS, "they have not been waited for meanwhile"
            await stream.aclose()
            stream = await dialler.connect("127.0.0.1", port, named=False)
            await stream.aclose()
            await trio.sleep(FIRST_TIMEOUT)
            assert dialler._late.borrowed_tokens >= MAX_DIALS
            nursery.cancel_scope.cancel()


async def test_a_refusal_is_told_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(OSError, match="127.0.0.1"):
        await Dialler().connect("127.0.0.1", port, named=False)

"""Connections that wait together, and answers given on the spot."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from spegel_consul.http.server.idle_connections import IdleConnection, IdleConnections
from spegel_consul.http.server.idle_timer import IdleTimer
from spegel_consul.zerocopy.send import FileAnswer


async def nothing() -> None:
    """For a timer that never closes anything."""


@dataclass
class Harness:
    idle_connections: IdleConnections
    asked: list[bytes] = field(default_factory=list)

    def pair(self) -> tuple[socket.socket, IdleConnection]:
        client, server = socket.socketpair()
        client.setblocking(False)
        timer = IdleTimer(100, nothing, nothing)
        return client, IdleConnection(trio.socket.from_stdlib_socket(server), timer, False, lambda: False)


@pytest.fixture
async def harness(nursery: trio.Nursery, tmp_path: Path) -> Harness:
    answers = {b"ping": b"pong", b"big": bytes(8 << 20)}
    (tmp_path / "file").write_bytes(bytes(8 << 20))

    def at_once(data: bytes, local: bool) -> bytes | FileAnswer | None:
        harness.asked.append(data)
        if data == b"file":
            fd = os.open(tmp_path / "file", os.O_RDONLY)
            return FileAnswer(bytes(100), fd, 0, (8 << 20) - 100, lambda sent: None)
        if data == b"bug":
            raise OSError("stale file handle")
        return answers.get(data)

    harness = Harness(IdleConnections(at_once))
    await nursery.start(harness.idle_connections.run)
    return harness


async def receive(client: socket.socket, count: int) -> bytearray:
    received = bytearray()
    with trio.fail_after(5):
        while len(received) < count:
            await trio.lowlevel.wait_readable(client)
            if not (data := client.recv(1 << 20)):
                break
            received += data
    return received


async def test_what_is_known_is_answered_and_the_rest_is_handed_over(harness: Harness, nursery: trio.Nursery) -> None:
    client, idle = harness.pair()
    got: list[bytes] = []

    async def connection() -> None:
        while data := await harness.idle_connections.next_request(idle):
            got.append(data)
        got.append(b"left")

    nursery.start_soon(connection)
    with client:
        for _ in range(3):
            client.send(b"ping")
            assert await receive(client, 4) == b"pong"
        assert got == []
        client.send(b"what?")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert got == [b"what?"]
        client.send(b"ping")
        assert await receive(client, 4) == b"pong"
        client.send(b"bug")
        await trio.testing.wait_all_tasks_blocked(0.05)
        client.send(b"ping")
        assert await receive(client, 4) == b"pong"
    with trio.fail_after(5):
        while got != [b"what?", b"bug", b"left"]:
            await trio.sleep(0.01)
    idle.sock.close()


async def test_an_answer_that_does_not_fit_is_sent_by_the_connection(harness: Harness, nursery: trio.Nursery) -> None:
    client, idle = harness.pair()
    other, second = harness.pair()
    nursery.start_soon(harness.idle_connections.next_request, idle)
    nursery.start_soon(harness.idle_connections.next_request, second)
    await trio.testing.wait_all_tasks_blocked(0.05)
    client.send(b"big")
    await trio.testing.wait_all_tasks_blocked(0.05)
    other.send(b"ping")  # nobody waits for a client that does not read
    assert await receive(other, 4) == b"pong"
    assert await receive(client, 8 << 20) == bytes(8 << 20)
    client.send(b"ping")
    assert await receive(client, 4) == b"pong"
    for each in (client, other):
        each.close()
    await trio.testing.wait_all_tasks_blocked(0.05)
    idle.sock.close()
    second.sock.close()


@dataclass
class Group:
    """A task group of hypercorn."""

    nursery: trio.Nursery

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        self.nursery.start_soon(task)


@pytest.mark.parametrize("request_", [b"big", b"file"])
async def test_a_stop_in_the_moment_in_which_an_answer_begins_does_not_cut_it(
    harness: Harness, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    """Trio runs the tasks that one pass has woken in any order."""
    wake = IdleConnections._wake
    for _ in range(20):
        client, idle = harness.pair()
        stop = trio.Event()

        async def close(idle: IdleConnection = idle) -> None:
            harness.idle_connections.dismiss(idle)
            idle.sock.close()

        def wake_and_stop(*args: Any, stop: trio.Event = stop) -> None:
            wake(*args)
            stop.set()

        monkeypatch.setattr(IdleConnections, "_wake", wake_and_stop)
        idle.timer, idle.leaving = IdleTimer(100, stop.wait, close), stop.is_set
        idle.timer.touch()
        idle.timer.watch(Group(nursery))  # type: ignore[arg-type]
        nursery.start_soon(harness.idle_connections.next_request, idle)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with client:
            client.send(request_)
            assert await receive(client, 8 << 20) == bytes(8 << 20)
        idle.sock.close()


async def test_nor_is_a_request_lost_that_came_in_that_moment(
    harness: Harness, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    wake = IdleConnections._wake
    for _ in range(20):
        client, idle = harness.pair()
        stop = trio.Event()
        closed: list[bool] = []

        async def close(closed: list[bool] = closed) -> None:
            closed.append(True)

        async def connection(idle: IdleConnection = idle, closed: list[bool] = closed) -> None:
            assert await harness.idle_connections.next_request(idle) == b"what?"
            assert not closed
            idle.timer.idle = False

        def wake_and_stop(*args: Any, stop: trio.Event = stop) -> None:
            wake(*args)
            stop.set()

        monkeypatch.setattr(IdleConnections, "_wake", wake_and_stop)
        idle.timer = IdleTimer(100, stop.wait, close)
        idle.timer.touch()
        idle.timer.watch(Group(nursery))  # type: ignore[arg-type]
        with client:
            with trio.fail_after(5):
                async with trio.open_nursery() as inner:
                    inner.start_soon(connection)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    client.send(b"what?")
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert not closed
        idle.sock.close()


async def test_a_wait_can_be_cancelled_or_dismissed(harness: Harness, nursery: trio.Nursery) -> None:
    client, idle = harness.pair()
    with client:
        with trio.move_on_after(0.05) as scope:
            await harness.idle_connections.next_request(idle)
        assert scope.cancelled_caught
        async with trio.open_nursery() as inner:

            async def wait() -> None:
                assert await harness.idle_connections.next_request(idle) == b""

            inner.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            harness.idle_connections.dismiss(idle)
            harness.idle_connections.dismiss(idle)  # and once more does no harm
        client.send(b"ping")
        await trio.sleep(0.05)
        assert harness.asked == []  # nobody reads from a connection that does not wait
    idle.sock.close()


async def test_a_reset_is_a_departure(harness: Harness, nursery: trio.Nursery) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    server.setblocking(False)
    idle = IdleConnection(trio.socket.from_stdlib_socket(server), IdleTimer(100, nothing, nothing), True, lambda: False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    client.close()
    with trio.fail_after(5):
        assert await harness.idle_connections.next_request(idle) == b""
    idle.sock.close()
    listener.close()

"""Connections that wait together, and answers given on the spot."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from spegel_consul.http.server.idle_connections import IdleConnection, IdleConnections
from spegel_consul.http.server.idle_timer import IdleTimer


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
async def harness(nursery: trio.Nursery) -> Harness:
    answers = {b"ping": b"pong", b"big": bytes(8 << 20)}

    def at_once(data: bytes, local: bool) -> bytes | None:
        harness.asked.append(data)
        if data == b"bug":
            raise OSError("stale file handle")
        return answers.get(data)

    harness = Harness(IdleConnections(at_once))
    await nursery.start(harness.idle_connections.run)
    return harness


async def receive(client: socket.socket, count: int) -> bytes:
    received = b""
    with trio.fail_after(5):
        while len(received) < count:
            await trio.lowlevel.wait_readable(client)
            received += client.recv(1 << 20)
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

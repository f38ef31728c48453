"""Tasks that wait for a peer's next bytes do not keep the last ones: each connection has eight such tasks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from spegel_consul.ring.dht.messages import Message, MessageType, encode
from spegel_consul.ring.dht.protocol_ids import KAD
from spegel_consul.ring.members.pipeline import Pipeline
from spegel_consul.ring.net.host import Take
from spegel_consul.ring.net.libp2p.noise_transport import Wire
from spegel_consul.ring.net.libp2p.stream import MuxedStream
from spegel_consul.ring.protocol_server import Service


class Tracked(bytes):
    """Bytes that are counted as long as they are alive."""

    alive = 0

    def __new__(cls, data: bytes) -> Tracked:
        cls.alive += 1
        return super().__new__(cls, data)

    def __del__(self) -> None:
        Tracked.alive -= 1


class Queue:
    """An outbox that yields tracked bytes once."""

    closed = False

    def __init__(self) -> None:
        self._left: list[bytes] = [b"queued"]

    async def take(self) -> bytes:
        if self._left:
            return Tracked(self._left.pop())
        await trio.sleep_forever()
        raise AssertionError


class OneMessage:
    """A stream on which one message comes after ``ready``, and then nothing."""

    peer = b"peer"
    is_reset = False

    def __init__(self, message: bytes) -> None:
        self._left = [message]
        self.ready = trio.Event()

    async def receive(self, take: Take | None = None) -> bytes:
        await self.ready.wait()
        if self._left:
            return Tracked(self._left.pop())
        await trio.sleep_forever()
        raise AssertionError

    def send(self, data: bytes) -> None:
        self.ready.set()

    def reset(self) -> None:
        self.is_reset = True


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_sent_bytes_of_a_connection(nursery: trio.Nursery) -> None:
    sent: list[int] = []

    async def send_all(data: bytes) -> None:
        sent.append(len(data))

    wire = Wire(SimpleNamespace(send_all=send_all))  # type: ignore[arg-type]
    wire._out = Queue()  # type: ignore[assignment]
    nursery.start_soon(wire.pump)
    await settle()
    assert (sent, Tracked.alive) == ([6], 0)


async def test_sent_bytes_of_a_stream(nursery: trio.Nursery) -> None:
    sent: list[int] = []

    async def write(data: bytes) -> None:
        sent.append(len(data))

    tasks: list[Callable[[], Any]] = []
    stream = MuxedStream(SimpleNamespace(spawn=tasks.append), SimpleNamespace(write=write))  # type: ignore[arg-type]
    stream._out = Queue()  # type: ignore[assignment]
    nursery.start_soon(tasks[0])
    await settle()
    assert (sent, Tracked.alive) == ([6], 0)


async def test_an_answer(nursery: trio.Nursery) -> None:
    stream = OneMessage(encode(Message(MessageType.PING)))

    async def opened(*_: object) -> OneMessage:
        return stream

    pipeline: Pipeline[int] = Pipeline(
        SimpleNamespace(open=opened),
        b"peer",
        list,
        "protocol",
        nursery.start_soon,
        len,  # type: ignore[arg-type]
    )
    with trio.fail_after(5):
        assert await pipeline.ask(b"question")
    await settle()
    assert Tracked.alive == 0


async def test_a_batch_of_announcements(nursery: trio.Nursery) -> None:
    def ignored(*_: object) -> None:
        return None

    served: dict[str, Callable[[Any], Any]] = {}
    membership = SimpleNamespace(table={b"peer": b"member"}, heard=ignored)
    bodies: list[Message] = []
    Service(
        SimpleNamespace(serve=served.__setitem__),  # type: ignore[arg-type]
        SimpleNamespace(spawn=ignored),  # type: ignore[arg-type]
        membership,  # type: ignore[arg-type]
        SimpleNamespace(is_full_of=ignored),  # type: ignore[arg-type]
        SimpleNamespace(answer=lambda peer, message: bodies.append(message)),  # type: ignore[arg-type]
    )
    batch = b"".join(encode(Message(MessageType.PING)) for _ in range(3))
    stream = OneMessage(batch)
    stream.ready.set()
    nursery.start_soon(served[KAD], stream)
    await settle()
    assert (len(bodies), Tracked.alive) == (3, 0)

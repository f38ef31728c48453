"""Pipelined questions to one peer.

Questions to one peer are sent over one stream without waiting for earlier answers.  The peer answers in order, so the
n-th answer belongs to the n-th question.  A question whose caller has given up keeps its position in the queue.  An
error on the stream fails all questions that are open on it, and the next question opens a new stream.

A question has a task that waits for its answer, or an object that is told of it (:meth:`Pipeline.send`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

import structlog
import trio

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import RingError, peer_id_to_text
from spegel_consul.ring.dht.messages import MAX_MESSAGE, Frames, WireError
from spegel_consul.ring.net.host import Host, Stream, StreamClosed
from spegel_consul.ring.net.shared_result import Result

log = structlog.get_logger(__name__)

_TRIES = 3

A = TypeVar("A")
_Told = TypeVar("_Told", contravariant=True)


class Asker(Protocol[_Told]):
    """Is told once how its question ended, by the task that reads the connection; so it must not wait."""

    def set(self, value: _Told, /) -> None: ...

    def fail(self, error: RingError, /) -> None: ...


class _Conversation(Generic[A]):
    """A stream and its questions that are not answered yet."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.waiting: deque[Asker[A]] = deque()

    def send(self, request: bytes, asker: Asker[A]) -> None:
        self.stream.send(request)
        self.waiting.append(asker)

    async def ask(self, request: bytes) -> A:
        answer: Result[A] = Result()
        self.send(request, answer)
        return await answer.wait()


class Pipeline(Generic[A]):
    """The stream to one peer for one protocol, opened on demand.

    ``decode`` reads an answer of at most ``limit`` bytes, and raises WireError.
    """

    def __init__(
        self,
        host: Host,
        peer: bytes,
        addresses: Callable[[], Sequence[Address]],
        protocol: str,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
        decode: Callable[[bytes], A],
        limit: int = MAX_MESSAGE,
    ) -> None:
        self._host = host
        self._peer = peer
        self._addresses = addresses
        self._protocol = protocol
        self._spawn = spawn
        self._decode = decode
        self._limit = limit
        self._conversation: _Conversation[A] | None = None
        self._opening: Result[_Conversation[A]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a question needs no new stream."""
        return self._conversation is not None

    async def ask(self, request: bytes) -> A:
        """The answer to ``request``, an encoded message or several of which the last has an answer.

        Sets no deadline. Raises RingError if the peer can't be reached or breaks the stream. If a stream from an
        earlier question turns out to be closed, the question is tried again, because the peer closes idle streams
        and surplus connections.
        """
        for _ in range(_TRIES - 1):
            if (conversation := self._conversation) is None:
                break
            try:
                return await conversation.ask(request)
            except StreamClosed:
                if self._conversation is conversation:
                    self._conversation = None  # the task that reads from it has not noticed yet
        return await (await self._open()).ask(request)

    def send(self, request: bytes, asker: Asker[A]) -> bool:
        """Send ``request`` on the open stream, and tell ``asker`` of the answer. False if there is no such stream.

        If the peer has closed the stream, ``asker`` is told a StreamClosed, and :meth:`ask` would try again.
        """
        try:
            if self._conversation is not None:
                self._conversation.send(request, asker)
                return True
        except StreamClosed:
            self._conversation = None
        return False

    async def _open(self) -> _Conversation[A]:
        if self._conversation is not None:
            return self._conversation
        if self._opening is None:
            self._opening = Result()
            self._spawn(self._converse)
        return await self._opening.wait()

    async def _converse(self) -> None:
        """Open the stream and read answers until it ends."""
        opening = self._opening
        assert opening is not None
        try:
            stream = await self._host.open(self._peer, self._addresses(), self._protocol)
        except RingError as exc:
            opening.fail(exc)
            return
        finally:
            self._opening = None
        conversation = self._conversation = _Conversation(stream)
        opening.set(conversation)
        frames = Frames(self._limit)

        def take(data: bytes) -> bool:
            for body in frames.feed(data):
                if not conversation.waiting:
                    raise WireError("an answer without a question")
                conversation.waiting.popleft().set(self._decode(body))
            return True

        try:
            while data := await stream.receive(take):
                take(data)
                del data  # released before the wait for the next answer, which may be long
                await trio.lowlevel.checkpoint()  # because more may have arrived, and then the next call does not wait
        except RingError as exc:
            log.debug("ring_stream_ended", peer=peer_id_to_text(self._peer), error=str(exc))
        finally:
            if self._conversation is conversation:
                self._conversation = None
            for answer in conversation.waiting:
                answer.fail(StreamClosed("the stream ended before the answer"))
            stream.reset()

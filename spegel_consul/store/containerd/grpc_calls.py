"""Calls of containerd that can be cancelled, and calls with more than one message in their answer.

A stream is pulled: one hop into a thread gets the next messages, so gRPC's own flow control is the back-pressure.  Each
end of the wait cancels the call, and then the thread ends at once.  A new kind of call belongs here; the calls
themselves are in :mod:`spegel_consul.store.containerd.grpc_client`.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import trio
from google.protobuf.message import Message

from spegel_consul.disk.threads import in_thread
from spegel_consul.oci.digest import Digest
from spegel_consul.store.blob_files import PIECE, absent
from spegel_consul.store.containerd import conversion
from spegel_consul.store.containerd.proto import containerd_pb2 as pb

Answer = TypeVar("Answer", bound=Message)
Result = TypeVar("Result")


class ContainerdUnavailable(Exception):
    """containerd can't be asked now. The message is one line that names the socket and says what to do."""


class CallUnknown(ContainerdUnavailable):
    """containerd answers, and does not know this call: it is older, or the plugin is disabled."""


class NotFound(Exception):
    """containerd does not know the image or content."""


class Call:
    """A gRPC call that a thread makes and the loop may cancel, even before it was made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._call: Any = None
        self._cancelled = False

    def attach(self, call: Any) -> None:
        with self._lock:
            self._call = call
            cancelled = self._cancelled
        if cancelled:
            call.cancel()

    def cancel(self) -> None:
        """Cancel the call; nothing happens to one that has ended."""
        with self._lock:
            self._cancelled = True
            call = self._call
        if call is not None:
            call.cancel()


class StreamOpener(Protocol):
    """The part of the client that opens streaming calls at ``socket``."""

    socket: Path

    def stream(
        self, pending: Call, method: str, request: Message, answer: type[Answer], *, endless: bool = False
    ) -> Iterable[Answer]:
        """One streaming call. Raises NotFound or ContainerdUnavailable, then or while it is iterated."""
        ...


class _Stream:
    """A streaming call that is iterated in threads, and cancelled when the block ends."""

    def __init__(self) -> None:
        self._pending = Call()
        self._limiter = trio.CapacityLimiter(1)

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the call; a thread that waits for it returns at once."""
        self._pending.cancel()

    async def _pull(self, step: Callable[[], Result]) -> Result:
        return await in_thread(step, self._limiter)


class EventStream(_Stream):
    """Endless events; raises ContainerdUnavailable when the connection is lost."""

    def __init__(self, client: StreamOpener, namespace: str) -> None:
        super().__init__()
        self._socket = client.socket
        self._namespace = namespace
        method = "/containerd.services.events.v1.Events/Subscribe"
        filters = [f'namespace=="{namespace}",topic~="^/{topic}/"' for topic in ("images", "content")]
        request = pb.SubscribeRequest(filters=filters)
        self._envelopes = iter(client.stream(self._pending, method, request, pb.Envelope, endless=True))

    def __aiter__(self) -> AsyncIterator[conversion.Event]:
        return self

    async def __anext__(self) -> conversion.Event:
        return await self._pull(self._next)

    def _next(self) -> conversion.Event:
        for envelope in self._envelopes:
            event = conversion.event(envelope, self._namespace)
            if event is not None:
                return event
        raise ContainerdUnavailable(f"containerd at {self._socket} has ended the stream of events")


class ContentStream(_Stream):
    """Pieces of at most 1 MiB; raises BlobUnknown when the content is gone, or short of what was asked."""

    def __init__(self, client: StreamOpener, digest: Digest, start: int, stop: int) -> None:
        super().__init__()
        self._digest = digest
        self._left = stop - start
        self._buffer = bytearray()
        method = "/containerd.services.content.v1.Content/Read"
        request = pb.ReadContentRequest(digest=digest, offset=start, size=stop - start)
        self._answers = iter(client.stream(self._pending, method, request, pb.ReadContentResponse, endless=True))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._left <= 0:
            self.cancel()
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        return await self._pull(self._next)

    def _next(self) -> bytes:
        # messages have some tens of KiB, a hop into a thread costs as much as several of them
        wanted = min(PIECE // 2, self._left)
        try:
            while len(self._buffer) < wanted:
                self._buffer += next(self._answers).data
        except (NotFound, StopIteration):
            raise absent(self._digest) from None
        piece = bytes(self._buffer[: min(PIECE, self._left)])
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        return piece

# gRPC's Python library blocks or brings its own loop, so each call is made in a thread, where it waits and where
# its answer is decoded; Trio's loop only ever waits for that thread.  A cancelled task leaves the thread behind
# and cancels the call, which makes the thread end at once.  A stream is pulled: one hop into a thread gets the
# next messages, so that back-pressure is gRPC's own flow control.
#
# Unary calls have a deadline; so has the listing of content.  The stream of events has none: it ends when
# containerd goes away, which is how we notice.
#
# When a call fails, gRPC's words ("failed to connect to all addresses") help nobody.  One plain connect to the
# socket tells what is the matter.

"""A small client of containerd's gRPC API, blocking calls in threads behind a Trio face."""

from __future__ import annotations

import errno
import socket as sockets
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import trio
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from spegel_consul.oci.digest import Digest
from spegel_consul.store.containerd import messages
from spegel_consul.store.containerd.proto import containerd_pb2 as pb
from spegel_consul.store.file import PIECE, absent
from spegel_consul.store.index import Content, ImageRecord

Answer = TypeVar("Answer", bound=Message)
Result = TypeVar("Result")

_OPTIONS = (
    # containerd refuses the authority that gRPC makes of a socket's path
    ("grpc.default_authority", "localhost"),
    # back-off is the store's business; a channel that shared its connections would share theirs
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # despite its name how long an attempt to connect may take: a busy containerd needs more than a moment
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.enable_retries", 0),
    # containerd's own limit; gRPC's 4 MiB are too small for the list of some thousand images
    ("grpc.max_receive_message_length", 16 << 20),
)


class ContainerdUnavailable(Exception):
    """containerd can't be asked now. The message is one line that names the socket and says what to do."""


class ContainerdClient:
    """One connection to containerd at ``socket``, for its ``namespace``; ``deadline`` of a call in seconds.

    Each method raises ContainerdUnavailable if containerd does not answer.
    """

    def __init__(self, socket: Path, namespace: str, *, deadline: float = 10.0) -> None:
        self._socket = socket
        self._namespace = namespace
        self._deadline = deadline
        self._limiter = trio.CapacityLimiter(8)
        self._channel: Any = None

    async def __aenter__(self) -> Self:
        self._channel = await trio.to_thread.run_sync(self._open_channel, limiter=self._limiter)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._channel.close)

    async def version(self) -> str:
        """containerd's version, such as ``1.7.24``."""
        method = "/containerd.services.version.v1.Version/Version"
        answer = await self._unary(method, empty_pb2.Empty(), pb.VersionResponse)
        return answer.version

    async def namespaces(self) -> tuple[str, ...]:
        """The namespaces that exist; one appears when its first image does."""
        method = "/containerd.services.namespaces.v1.Namespaces/List"
        answer = await self._unary(method, pb.ListNamespacesRequest(), pb.ListNamespacesResponse)
        return tuple(namespace.name for namespace in answer.namespaces)

    async def content_root(self) -> Path | None:
        """The directory of the content store, as containerd sees it; None if it does not say."""
        method = "/containerd.services.introspection.v1.Introspection/Plugins"
        request = pb.PluginsRequest(filters=["type==io.containerd.content.v1"])
        answer = await self._unary(method, request, pb.PluginsResponse)
        for plugin in answer.plugins:
            if root := plugin.exports.get("root"):
                return Path(root)
        return None

    async def images(self) -> tuple[ImageRecord, ...]:
        """All images of the namespace that can be served."""

        def call(pending: _Call) -> tuple[ImageRecord, ...]:
            method = "/containerd.services.images.v1.Images/List"
            answer = self._ask(pending, method, pb.ListImagesRequest(), pb.ListImagesResponse)
            return tuple(record for record in map(messages.image_record, answer.images) if record is not None)

        return await self._in_thread(call)

    async def image(self, name: str) -> ImageRecord | None:
        """One image, or None if there is none of that name."""

        def call(pending: _Call) -> ImageRecord | None:
            method = "/containerd.services.images.v1.Images/Get"
            try:
                answer = self._ask(pending, method, pb.GetImageRequest(name=name), pb.GetImageResponse)
            except _NotFound:
                return None
            return messages.image_record(answer.image)

        return await self._in_thread(call)

    async def contents(self) -> tuple[Content, ...]:
        """All content of the namespace that is committed."""

        def call(pending: _Call) -> tuple[Content, ...]:
            method = "/containerd.services.content.v1.Content/List"
            found: list[Content] = []
            for answer in self._stream(pending, method, pb.ListContentRequest(), pb.ListContentResponse):
                found.extend(content for content in map(messages.content, answer.info) if content is not None)
            return tuple(found)

        return await self._in_thread(call)

    async def find(self, digests: Iterable[Digest]) -> tuple[Content, ...]:
        """Those of ``digests`` that are committed, in one hop. One round trip for each: meant for an image's worth."""

        def call(pending: _Call) -> tuple[Content, ...]:
            method = "/containerd.services.content.v1.Content/Info"
            found: list[Content] = []
            for digest in digests:
                with suppress(_NotFound):
                    answer = self._ask(pending, method, pb.InfoRequest(digest=digest), pb.InfoResponse)
                    content = messages.content(answer.info)
                    if content is not None:
                        found.append(content)
            return tuple(found)

        return await self._in_thread(call)

    def read(self, digest: Digest, start: int, stop: int) -> ContentStream:
        """The bytes ``[start, stop)`` of content, which must not be nothing. Iterate it inside ``async with``."""
        return ContentStream(self, digest, start, stop)

    def events(self) -> EventStream:
        """Events of images and content in the namespace. Iterate it inside ``async with``."""
        return EventStream(self, self._namespace)

    # In threads

    def _open_channel(self) -> Any:
        return grpc.insecure_channel(f"unix:{self._socket.absolute()}", options=_OPTIONS)

    def _ask(self, pending: _Call, method: str, request: Message, answer: type[Answer]) -> Answer:
        """One unary call. Raises _NotFound or ContainerdUnavailable."""
        try:
            stub = self._channel.unary_unary(
                method, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
            )
            call = stub.future(request, timeout=self._deadline, metadata=self._metadata, wait_for_ready=False)
            pending.attach(call)
            result: Answer = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as exc:
            raise self._explain(exc) from exc
        return result

    def _stream(
        self, pending: _Call, method: str, request: Message, answer: type[Answer], *, endless: bool = False
    ) -> Iterable[Answer]:
        """One streaming call. Raises _NotFound or ContainerdUnavailable, then or while it is iterated."""
        try:
            stub = self._channel.unary_stream(
                method, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
            )
            timeout = None if endless else self._deadline
            call = stub(request, timeout=timeout, metadata=self._metadata)
            pending.attach(call)
            yield from call
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as exc:
            raise self._explain(exc) from exc

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("containerd-namespace", self._namespace),)

    def _explain(self, exc: Exception) -> Exception:
        # a closed channel raises ValueError, a call that was cancelled FutureCancelledError
        if not isinstance(exc, grpc.RpcError):
            return ContainerdUnavailable(f"the connection to containerd at {self._socket} was closed")
        code, details = exc.code(), exc.details()  # type: ignore[attr-defined, unused-ignore]
        if code is grpc.StatusCode.NOT_FOUND:
            return _NotFound(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ContainerdUnavailable(
                f"containerd at {self._socket} accepts connections but has not answered within {self._deadline:g} s"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return ContainerdUnavailable(why_unreachable(self._socket))
        return ContainerdUnavailable(f"containerd at {self._socket} answered {code.name}: {details}")

    # On Trio's side

    async def _unary(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        def call(pending: _Call) -> Answer:
            try:
                return self._ask(pending, method, request, answer)
            except _NotFound as exc:
                raise ContainerdUnavailable(f"containerd at {self._socket} answered NOT_FOUND: {exc}") from exc

        return await self._in_thread(call)

    async def _in_thread(self, call: Callable[[_Call], Result]) -> Result:
        pending = _Call()
        try:
            return await trio.to_thread.run_sync(call, pending, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            pending.cancel()


class _NotFound(Exception):
    """containerd does not know the image or content."""


class _Call:
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


class _Stream:
    """A streaming call that is iterated in threads, and cancelled when the block ends."""

    def __init__(self) -> None:
        self._pending = _Call()
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
        return await trio.to_thread.run_sync(step, limiter=self._limiter, abandon_on_cancel=True)


class EventStream(_Stream):
    """Endless events; raises ContainerdUnavailable when the connection is lost."""

    def __init__(self, client: ContainerdClient, namespace: str) -> None:
        super().__init__()
        self._socket = client._socket
        self._namespace = namespace
        method = "/containerd.services.events.v1.Events/Subscribe"
        filters = [f'namespace=="{namespace}",topic~="^/{topic}/"' for topic in ("images", "content")]
        request = pb.SubscribeRequest(filters=filters)
        self._envelopes = iter(client._stream(self._pending, method, request, pb.Envelope, endless=True))

    def __aiter__(self) -> AsyncIterator[messages.Event]:
        return self

    async def __anext__(self) -> messages.Event:
        return await self._pull(self._next)

    def _next(self) -> messages.Event:
        for envelope in self._envelopes:
            event = messages.event(envelope, self._namespace)
            if event is not None:
                return event
        raise ContainerdUnavailable(f"containerd at {self._socket} has ended the stream of events")


class ContentStream(_Stream):
    """Pieces of at most 1 MiB; raises BlobUnknown when the content is gone, or short of what was asked."""

    def __init__(self, client: ContainerdClient, digest: Digest, start: int, stop: int) -> None:
        super().__init__()
        self._digest = digest
        self._left = stop - start
        self._buffer = bytearray()
        method = "/containerd.services.content.v1.Content/Read"
        request = pb.ReadContentRequest(digest=digest, offset=start, size=stop - start)
        self._answers = iter(client._stream(self._pending, method, request, pb.ReadContentResponse, endless=True))

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
        except (_NotFound, StopIteration):
            raise absent(self._digest) from None
        piece = bytes(self._buffer[: min(PIECE, self._left)])
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        return piece


def why_unreachable(socket: Path) -> str:
    """One line that says why containerd can't be reached at ``socket``, and what to do. Waits at most a second."""
    try:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(str(socket))
    except FileNotFoundError:
        return (
            f"containerd's socket {socket} does not exist: start containerd, or give the right path"
            " (and mount it, if this runs in a container)"
        )
    except PermissionError:
        return f"no permission to connect to containerd's socket {socket}: run as root or as a member of its group"
    except ConnectionRefusedError:
        return f"nobody listens on containerd's socket {socket}: start containerd"
    except OSError as exc:
        reason = errno.errorcode.get(exc.errno, "") if exc.errno else "no answer"
        return f"can't connect to containerd's socket {socket}: {exc.strerror or exc} {reason}".rstrip()
    return f"the connection to containerd at {socket} was lost, or what listens there is not containerd"

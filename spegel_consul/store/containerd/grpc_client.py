"""A small client of containerd's gRPC API: blocking calls in threads, awaited by Trio tasks.

gRPC's Python library blocks or brings a loop of its own.  So each call is made in a thread, which also decodes the
answer, and Trio's loop only waits for that thread.  A cancelled task leaves the thread behind and cancels the call, and
then the thread ends at once.

Unary calls and the listing of content have deadlines.  The stream of events has none: it ends when containerd goes
away, which is how the client notices.

gRPC costs 5 MiB, so it is imported with the first connection, in the thread that opens it.

When a call fails, gRPC's text ("failed to connect to all addresses") does not name the cause.  So one plain connect to
the socket finds it.

A new call of containerd belongs here.
"""

from __future__ import annotations

import errno
import socket as sockets
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog
import trio
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from spegel_consul.disk.threads import NoThread, in_thread
from spegel_consul.error_words import in_words
from spegel_consul.oci.digest import Digest
from spegel_consul.store.containerd import conversion
from spegel_consul.store.containerd.grpc_calls import (
    Answer,
    Call,
    CallUnknown,
    ContainerdUnavailable,
    ContentStream,
    EventStream,
    NotFound,
)
from spegel_consul.store.containerd.proto import containerd_pb2 as pb
from spegel_consul.store.index import Content, ImageRecord

log = structlog.get_logger(__name__)

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


_CLOSE_WITHIN = 2.0  # seconds


class ContainerdClient:
    """One connection to containerd at ``socket``, for its ``namespace``; ``deadline`` of a call in seconds.

    Each method raises ContainerdUnavailable if containerd does not answer.
    """

    def __init__(self, socket: Path, namespace: str, *, deadline: float = 10.0) -> None:
        self.socket = socket
        self._namespace = namespace
        self._deadline = deadline
        self._limiter = trio.CapacityLimiter(8)
        self._channel: Any = None

    async def __aenter__(self) -> Self:
        self._channel = await in_thread(self._open_channel, self._limiter)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # not in the limiter of the calls, which may all be taken by calls that this ends
        with trio.move_on_after(_CLOSE_WITHIN, shield=True) as limit:
            await in_thread(self._channel.close, trio.CapacityLimiter(1))
        if limit.cancelled_caught:
            log.warning("the connection to containerd was left open", socket=str(self.socket))

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

        def call(pending: Call) -> tuple[ImageRecord, ...]:
            method = "/containerd.services.images.v1.Images/List"
            answer = self._ask(pending, method, pb.ListImagesRequest(), pb.ListImagesResponse)
            return tuple(record for record in map(conversion.image_record, answer.images) if record is not None)

        return await self._in_thread(call)

    async def image(self, name: str) -> ImageRecord | None:
        """One image, or None if there is none of that name."""

        def call(pending: Call) -> ImageRecord | None:
            method = "/containerd.services.images.v1.Images/Get"
            try:
                answer = self._ask(pending, method, pb.GetImageRequest(name=name), pb.GetImageResponse)
            except NotFound:
                return None
            return conversion.image_record(answer.image)

        return await self._in_thread(call)

    async def contents(self) -> tuple[Content, ...]:
        """All content of the namespace that is committed."""

        def call(pending: Call) -> tuple[Content, ...]:
            method = "/containerd.services.content.v1.Content/List"
            found: list[Content] = []
            for answer in self.stream(pending, method, pb.ListContentRequest(), pb.ListContentResponse):
                found.extend(content for content in map(conversion.content, answer.info) if content is not None)
            return tuple(found)

        return await self._in_thread(call)

    async def find(self, digests: Iterable[Digest]) -> tuple[Content, ...]:
        """Those of ``digests`` that are committed, in one hop. One round trip for each: meant for an image's worth."""

        def call(pending: Call) -> tuple[Content, ...]:
            method = "/containerd.services.content.v1.Content/Info"
            found: list[Content] = []
            for digest in digests:
                with suppress(NotFound):
                    answer = self._ask(pending, method, pb.InfoRequest(digest=digest), pb.InfoResponse)
                    content = conversion.content(answer.info)
                    if content is not None:
                        found.append(content)
            return tuple(found)

        return await self._in_thread(call)

    async def call(self, method: str, request: Message, answer: type[Answer], within: float) -> Answer:
        """One unary call that may take ``within`` seconds. Raises NotFound, and CallUnknown for an unknown method."""
        return await self._in_thread(lambda pending: self._ask(pending, method, request, answer, within))

    def read(self, digest: Digest, start: int, stop: int) -> ContentStream:
        """The bytes ``[start, stop)`` of content, which must not be nothing. Iterate it inside ``async with``."""
        return ContentStream(self, digest, start, stop)

    def events(self) -> EventStream:
        """Events of images and content in the namespace. Iterate it inside ``async with``."""
        return EventStream(self, self._namespace)

    # In threads

    def _open_channel(self) -> Any:
        import grpc

        return grpc.insecure_channel(f"unix:{self.socket.absolute()}", options=_OPTIONS)

    def _ask(
        self, pending: Call, method: str, request: Message, answer: type[Answer], within: float | None = None
    ) -> Answer:
        """One unary call of ``within`` seconds, or the client's deadline. Raises NotFound or ContainerdUnavailable."""
        import grpc

        deadline = within or self._deadline
        try:
            stub = self._channel.unary_unary(
                method, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
            )
            call = stub.future(request, timeout=deadline, metadata=self._metadata, wait_for_ready=False)
            pending.attach(call)
            result: Answer = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as exc:
            raise self._explain(exc, deadline) from exc
        return result

    def stream(
        self, pending: Call, method: str, request: Message, answer: type[Answer], *, endless: bool = False
    ) -> Iterable[Answer]:
        """One streaming call. Raises NotFound or ContainerdUnavailable, then or while it is iterated."""
        import grpc

        try:
            stub = self._channel.unary_stream(
                method, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
            )
            timeout = None if endless else self._deadline
            call = stub(request, timeout=timeout, metadata=self._metadata)
            pending.attach(call)
            yield from call
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as exc:
            raise self._explain(exc, self._deadline) from exc

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("containerd-namespace", self._namespace),)

    def _explain(self, exc: Exception, deadline: float) -> Exception:
        import grpc

        # a closed channel raises ValueError, a call that was cancelled FutureCancelledError
        if not isinstance(exc, grpc.RpcError):
            return ContainerdUnavailable(f"the connection to containerd at {self.socket} was closed")
        code, details = exc.code(), exc.details()  # type: ignore[attr-defined, unused-ignore]
        if code is grpc.StatusCode.NOT_FOUND:
            return NotFound(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ContainerdUnavailable(
                f"containerd at {self.socket} accepts connections but has not answered within {deadline:g} s"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return ContainerdUnavailable(why_unreachable(self.socket))
        message = f"containerd at {self.socket} answered {code.name}: {details}"
        return CallUnknown(message) if code is grpc.StatusCode.UNIMPLEMENTED else ContainerdUnavailable(message)

    # On Trio's side

    async def _unary(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        def call(pending: Call) -> Answer:
            try:
                return self._ask(pending, method, request, answer)
            except NotFound as exc:
                raise ContainerdUnavailable(f"containerd at {self.socket} answered NOT_FOUND: {exc}") from exc

        return await self._in_thread(call)

    async def _in_thread(self, call: Callable[[Call], Result]) -> Result:
        pending = Call()
        try:
            return await in_thread(partial(call, pending), self._limiter)
        except NoThread as exc:
            raise ContainerdUnavailable(f"containerd at {self.socket} can't be asked: {in_words(exc)}") from None
        finally:
            pending.cancel()


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
        return f"can't connect to containerd's socket {socket}: {in_words(exc)} {reason}".rstrip()
    return f"the connection to containerd at {socket} was lost, or what listens there is not containerd"

# Manifests and blobs: from the own store if it is there, else from a peer.
#
# This is an ASGI application in front of the quart app, which answers everything else.  It runs one watcher
# beside the answer, so that a client that goes away ends the work done for it.  An answer whose head has been
# sent and that can't be completed is cut: returning without the last body event makes the server close the
# connection, and the client sees fewer bytes than it was promised.

"""``GET`` and ``HEAD`` of manifests and blobs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import structlog
import trio

from spegel_consul.metrics import Metrics
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.errors import BlobUnknown, ManifestUnknown, NameUnknown, OCIError, RangeInvalid, Unsupported
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.media import INDEXES, MANIFESTS
from spegel_consul.oci.path import ContentRequest, Kind, parse_content_path
from spegel_consul.oci.ranges import parse_range
from spegel_consul.registry.mirror import MIRRORED_HEADER, Head, Mirror, TransferCut
from spegel_consul.store import Blob, Store

log = structlog.get_logger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_RUNTIMES = ("containerd/", "docker/")


class InternalError(OCIError):
    """A defect of ours; the log has the details."""


class ContentApp:
    """Answers the distribution API's content paths, and hands every other request to ``others``."""

    def __init__(
        self, others: Application, store: Store, mirror: Mirror, accepts: ImageFilter, metrics: Metrics
    ) -> None:
        self._others = others
        self._store = store
        self._mirror = mirror
        self._accepts = accepts
        self._metrics = metrics
        self._own_bytes = metrics.served_bytes.labels("own")
        self._peer_bytes = metrics.served_bytes.labels("peer")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI 3 entry point."""
        path = scope.get("raw_path", b"")
        if scope["type"] != "http" or not path.startswith(b"/v2/") or path == b"/v2/":
            await self._others(scope, receive, send)
            return
        answer = _Answer(send, scope["method"])
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
            try:
                await self._answer(scope, answer)
            except TransferCut as exc:
                self._metrics.transfers_cut.inc()
                log.warning("transfer cut", path=path.decode("latin-1"), error=str(exc))
            except OCIError as exc:
                if answer.status is None:
                    await answer.error(exc)
            except Exception:
                log.exception("request failed", path=path.decode("latin-1"))
                if answer.status is None:
                    await answer.error(InternalError("internal error; the node's log has the details"))
            nursery.cancel_scope.cancel()
        self._metrics.http_requests.labels("content", scope["method"], answer.status or 499).observe(
            time.perf_counter() - started
        )

    async def _answer(self, scope: Scope, answer: _Answer) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise Unsupported(f"{scope['method']} is not supported: this registry is a read-only mirror")
        request = parse_content_path(scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1"))
        reference = request.reference
        if not self._accepts.accepts(str(reference)):
            raise NameUnknown(f"{reference} is not mirrored here, by the registries and filters that are configured")
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        from_peer = headers.get(MIRRORED_HEADER.encode()) == "true"
        range_header = headers.get(b"range")
        if from_peer or reference.digest is not None or not _is_own_runtime(scope, headers):
            found = self._find(request)
            if found is not None:
                try:
                    async with self._store.open(found.digest) as blob:
                        await self._send_own(answer, request, blob, range_header)
                        return
                except BlobUnknown:
                    # garbage collection was faster than the index; peers may still have it
                    if answer.status is not None:
                        raise TransferCut(f"{found.digest} was deleted while it was sent") from None
        if from_peer:
            unknown = ManifestUnknown if request.kind is Kind.MANIFEST else BlobUnknown
            raise unknown(f"this node does not have {reference}")
        await self._send_mirrored(answer, request, scope["method"], range_header)

    def _find(self, request: ContentRequest) -> Descriptor | None:
        digest = request.reference.digest or self._store.resolve(str(request.reference))
        found = self._store.describe(digest) if digest is not None else None
        if found is not None and request.kind is Kind.MANIFEST and found.media_type not in MANIFESTS | INDEXES:
            return None
        return found

    async def _send_own(self, answer: _Answer, request: ContentRequest, blob: Blob, range_header: str | None) -> None:
        content = blob.descriptor
        wanted = None if request.kind is Kind.MANIFEST else parse_range(range_header, content.size)
        start, stop = (wanted.start, wanted.stop) if wanted else (0, content.size)
        await answer.head(Head(content.digest, content.media_type, start, stop, content.size, wanted is not None))
        if answer.wants_body:
            async for piece in blob.chunks(start, stop):
                await answer.body(piece)
                self._own_bytes.inc(len(piece))
        await answer.end()

    async def _send_mirrored(
        self, answer: _Answer, request: ContentRequest, method: str, range_header: str | None
    ) -> None:
        registry = request.reference.registry
        try:
            async with self._mirror.open(request, method, range_header) as transfer:
                host, port = transfer.provider.registry
                await answer.head(transfer.head, served_by=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
                if answer.wants_body:
                    async with aclosing(transfer.chunks()) as pieces:
                        async for piece in pieces:
                            await answer.body(piece)
                            self._peer_bytes.inc(len(piece))
                await answer.end()
        except (ManifestUnknown, BlobUnknown):
            self._metrics.mirror_requests.labels(registry, "miss").inc()
            raise
        self._metrics.mirror_requests.labels(registry, "hit").inc()
        self._metrics.mirror_last_success.set_to_current_time()


class _Answer:
    """One response; ``status`` is None until its head was sent."""

    def __init__(self, send: Send, method: str) -> None:
        self._send = send
        self.wants_body = method != "HEAD"
        self.status: int | None = None

    async def head(self, head: Head, served_by: str | None = None) -> None:
        headers = [
            (b"content-type", head.media_type.encode("latin-1", "replace")),
            (b"content-length", b"%d" % (head.stop - head.start)),
            (b"docker-content-digest", head.digest.encode()),
            (b"accept-ranges", b"bytes"),
        ]
        if head.partial:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (head.start, head.stop - 1, head.size)))
        if served_by is not None:
            headers.append((b"x-spegel-served-by", served_by.encode()))
        await self._start(206 if head.partial else 200, headers)

    async def body(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def error(self, error: OCIError) -> None:
        body = error.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if isinstance(error, RangeInvalid):
            headers.append((b"content-range", b"bytes */%d" % error.size))
        if isinstance(error, Unsupported):
            headers.append((b"allow", b"GET, HEAD"))
        await self._start(error.status, headers)
        await self.body(body)
        await self.end()

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = int(status)
        await self._send({"type": "http.response.start", "status": int(status), "headers": headers})


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _is_own_runtime(scope: Scope, headers: dict[bytes, str]) -> bool:
    """Whether the container runtime of this very node asks.

    When it asks for a tag that its own store has, it wants to know whether the tag has moved; an answer
    from that store could only ever say no.  Peers and the upstream registry can say more.
    """
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None or client[0] != server[0]:
        return False
    return headers.get(b"user-agent", "").startswith(_RUNTIMES)

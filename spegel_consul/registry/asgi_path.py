"""``GET`` and ``HEAD`` of manifests and blobs over ASGI: from the own store if it has the content, else from a peer.
Lists of own content are answered here, too.

This is an ASGI application in front of the quart app, which answers everything else. A watcher task runs beside each
answer, so that the departure of the client ends the work for it. An answer whose head has been sent and that can't be
completed is cut: the application returns without the last body event, so the server closes the connection, and the
client sees that bytes are missing.

A new rule belongs here if it concerns an answer as ASGI events. Rules for both paths belong to
:mod:`spegel_consul.registry.plan` and :mod:`spegel_consul.registry.answer_head`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from http import HTTPStatus

import structlog
import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    Scope,
)

from spegel_consul.metrics.sidecar_metrics import CONTENT, Metrics
from spegel_consul.oci.errors import BlobUnknown, OCIError
from spegel_consul.oci.path import MIRRORED_HEADER, ContentRequest, unknown
from spegel_consul.oci.ranges import ByteRange, Ranges
from spegel_consul.registry.answer_head import fields_of, fields_of_error, status_of
from spegel_consul.registry.growing import Arrived, GrowingContent
from spegel_consul.registry.listings import Listing, Listings, is_listing
from spegel_consul.registry.mirror.body.multipart import Multipart
from spegel_consul.registry.mirror.body.transfer import Transfer
from spegel_consul.registry.mirror.fetch import TransferCut
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.range_parts import Part, send_parts
from spegel_consul.registry.mirror.tags.tag_ages import OwnTagIsNewer
from spegel_consul.registry.mirror.trace import Trace, TraceHeaders, trace_headers
from spegel_consul.registry.mirror.validate_head import Head
from spegel_consul.registry.plan import Elsewhere, Growing, Own, Planner
from spegel_consul.registry.uploads import Upload, Uploads, upload_of
from spegel_consul.store import Blob, Store
from spegel_consul.zerocopy.outlet import PieceOutlet
from spegel_consul.zerocopy.spool import OWN

log = structlog.get_logger(__name__)

_OTHERS = {b"/v2/": CONTENT, b"/v2": CONTENT, b"/livez": "/livez", b"/readyz": "/readyz"}
"""Handlers, as the metrics call them, of the paths that are not content."""


class InternalError(OCIError):
    """A defect of this program; the log has the details."""


class ContentApp:
    """Answers the distribution API's content paths, and passes every other request to ``others``."""

    def __init__(
        self,
        others: ASGIFramework,
        planner: Planner,
        store: Store,
        mirror: Mirror,
        metrics: Metrics,
        uploads: Uploads | None = None,
    ) -> None:
        self._others = others
        self._store = store
        self._mirror = mirror
        self._planner = planner
        self._metrics = metrics
        self._uploads = uploads or Uploads()
        self._growing = GrowingContent(planner, store, mirror)
        self._listings = Listings(store)
        self.inflight = dict.fromkeys((CONTENT, *_OTHERS.values()), 0)
        """Number of requests that are being answered, by handler."""
        self._own_bytes = metrics.served_bytes.labels("own")
        self._peer_bytes = metrics.served_bytes.labels("peer")

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The ASGI 3 entry point."""
        if scope["type"] == "http":
            path = scope["raw_path"]
            handler = _OTHERS.get(path) or (CONTENT if path.startswith(b"/v2/") else None)
            if handler is not None:  # unknown paths are not counted, because clients choose them
                await self._counted(handler, scope, receive, send)
                return
        await self._others(scope, receive, send)

    async def _counted(
        self, handler: str, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        answer = _Answer(send, scope["method"])
        started = time.perf_counter()
        self.inflight[handler] += 1
        try:
            if scope["raw_path"] in _OTHERS:
                await self._other(scope, receive, answer)
            else:
                await self._answered(scope, receive, answer)
        finally:
            self.inflight[handler] -= 1
        method = scope["method"] if scope["method"] in ("GET", "HEAD") else "other"
        labels = handler, method, answer.status or 499
        self._metrics.http_requests.labels(*labels).observe(time.perf_counter() - started)
        self._metrics.http_response_size.labels(*labels).observe(answer.sent)

    async def _other(self, scope: HTTPScope, receive: ASGIReceiveCallable, answer: _Answer) -> None:
        """Answer the API's version check, or a health check."""
        if scope["raw_path"].startswith(b"/v2"):
            try:
                self._planner.check(_combined(scope["headers"]).get(b"authorization"))
            except OCIError as exc:
                await answer.error(exc)
                return
        await self._others(scope, receive, answer.passed_on)

    async def _answered(self, scope: HTTPScope, receive: ASGIReceiveCallable, answer: _Answer) -> None:
        path = scope["raw_path"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, receive, answer, nursery.cancel_scope)
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

    async def _answer(self, scope: HTTPScope, answer: _Answer) -> None:
        client, server = scope.get("client"), scope.get("server")
        headers = _combined(scope["headers"])
        method = scope["method"]
        local = client is not None and server is not None and client[0] == server[0]
        if client is not None and not local:
            answer.client = client[0]
        question = method, scope["raw_path"], scope["query_string"], headers
        if is_listing(scope["raw_path"]):
            self._planner.check(headers.get(b"authorization"))
            await answer.listing(await self._listings.answer(*question))
            return
        identity = trace_headers(headers)
        answer.from_peer = headers.get(MIRRORED_HEADER) == b"true"
        answer.authorization = self._planner.upstream_authorization(headers)
        plan = self._planner.plan(*question, from_this_machine=local)
        while isinstance(plan, Growing):
            try:
                await self._send_growing(answer, plan)
                return
            except Arrived:
                plan = self._planner.plan(*question, from_this_machine=local)
        if isinstance(plan, Own):
            upload = upload_of(method, headers, plan)
            try:
                await self._from_store(answer, plan, identity, upload)
                return
            except BlobUnknown as gone:
                # the file was deleted and the index does not know yet; peers may still have the content
                if answer.from_peer:
                    raise unknown(plan.request, gone.message) from None
            plan = Elsewhere(plan.request, plan.wanted)
        try:
            await self._send_mirrored(answer, plan, method, identity)
        except OwnTagIsNewer as exc:
            own = self._planner.own(plan.request)
            if own is None:
                raise unknown(plan.request, str(exc)) from None
            await self._from_store(answer, own, identity, upload_of(method, headers, own))

    async def _from_store(self, answer: _Answer, plan: Own, identity: TraceHeaders, upload: Upload) -> None:
        """Send content of the own store. Raises BlobUnknown before anything was sent, and TransferCut."""
        try:
            async with self._store.open(plan.content.digest) as blob:
                if plan.request.promises:
                    manifest = b"".join([piece async for piece in blob.chunks(0, plan.content.size)])
                    await self._mirror.whole_images.check(plan.request, manifest, answer.client, identity)
                with self._uploads.one(upload):
                    await self._send_own(answer, plan, blob, upload)
        except BlobUnknown:
            if answer.status is None:
                raise
            raise TransferCut(f"{plan.content.digest} was deleted while it was sent") from None

    async def _send_own(self, answer: _Answer, plan: Own, blob: Blob, upload: Upload) -> None:
        content = plan.content
        spans = plan.spans or (ByteRange(0, content.size, content.size),)
        multipart = Multipart(content.media_type, spans) if len(spans) > 1 else None
        head = Head(content.digest, content.media_type, spans[0].start, spans[0].stop, content.size, plan.partial)
        if plan.request.reference.digest is None:
            head = replace(head, tag_age=self._mirror.peers.tag_ages.own(plan.request.reference))
            if not answer.from_peer:  # a peer checks what it passes on
                head = await self._mirror.checked(plan.request, head, answer.authorization, answer.client)
        load = self._uploads.streams if upload is not Upload.NONE else None
        await answer.head(head, fields_of(head, multipart=multipart, load=load))
        if answer.wants_body:
            pace = self._uploads.pace_of(upload)
            for place, span in enumerate(spans):
                if multipart is not None:
                    await answer.body(multipart.before(place))
                async for piece in blob.chunks(span.start, span.stop):
                    if pace is not None:
                        await pace.take_all(len(piece))
                    await answer.body(piece)
                    self._own_bytes.inc(len(piece))
            if multipart is not None:
                await answer.body(multipart.end)
        await answer.end()

    async def _send_growing(self, answer: _Answer, plan: Growing) -> None:
        pace = self._uploads.pace

        async def body(piece: bytes) -> None:
            if pace is not None:
                await pace.take_all(len(piece))
            await answer.body(piece)

        async with self._growing.open(plan, answer.interim) as followed:
            with self._uploads.one(Upload.FOLLOWED):
                fields = fields_of(followed.head, growing=True, load=self._uploads.streams)
                await answer.head(followed.head, fields)
                await followed.send(PieceOutlet(body), self._own_bytes.inc)
                await answer.end()

    async def _send_mirrored(self, answer: _Answer, plan: Elsewhere, method: str, identity: TraceHeaders) -> None:
        with self._mirror.begin(plan.request, method, identity, answer.client) as trace:
            if plan.wanted is not None and plan.wanted.several:
                await self._relay_parts(answer, plan.request, plan.wanted, trace)
            else:
                await self._relay(answer, plan, method, trace)

    async def _relay(self, answer: _Answer, plan: Elsewhere, method: str, trace: Trace) -> None:
        async with self._mirror.open(plan.request, method, plan.range_header, trace) as transfer:
            if plan.request.promises:
                await self._mirror.whole_images.check(
                    plan.request, transfer.content or b"", trace.client, trace.trace_headers
                )
            if answer.wants_body:
                await transfer.hold()
            head = await self._mirror.checked(plan.request, transfer.head, answer.authorization, answer.client)
            trace.tag_check = head.tag_check
            await answer.head(head, fields_of(head, transfer.served_by))
            if answer.wants_body:
                await self._carry(answer, transfer)
            await answer.end()

    async def _relay_parts(self, answer: _Answer, request: ContentRequest, wanted: Ranges, trace: Trace) -> None:
        async def send(part: Part) -> None:
            if part.first:
                fields = fields_of(part.head, part.transfer.served_by, part.multipart)
                await answer.head(part.head, fields)
            await answer.body(part.before)
            await self._carry(answer, part.transfer)
            await answer.body(part.after)

        await send_parts(self._mirror, request, wanted, trace, send)
        await answer.end()

    async def _carry(self, answer: _Answer, transfer: Transfer) -> None:
        async def body(piece: bytes) -> None:
            await answer.body(piece)
            self._peer_bytes.inc(len(piece))

        await transfer.send(PieceOutlet(body))


class _Answer:
    """One response; ``status`` is None until the head has been sent."""

    def __init__(self, send: ASGISendCallable, method: str) -> None:
        self._send = send
        self.wants_body = method != "HEAD"
        self.client = OWN
        """The address of the client, or :data:`OWN` if it is on this machine."""
        self.from_peer = False
        self.authorization: str | None = None
        """The client's credentials for the image's registry."""
        self.sent = 0
        self.status: int | None = None
        self.ended = False
        """Whether all of it has been handed to the server."""

    async def head(self, head: Head, fields: list[tuple[bytes, bytes]]) -> None:
        await self._start(status_of(head), fields)

    async def interim(self) -> None:
        """Send an interim answer (1xx)."""
        await self._send({"type": "http.response.early_hint", "links": []})

    async def body(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self.sent += len(piece)

    async def end(self) -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def listing(self, listing: Listing) -> None:
        fields = [(b"content-type", listing.content_type.encode()), (b"content-length", b"%d" % len(listing.body))]
        await self._start(HTTPStatus.OK, [*fields, *listing.headers])
        if self.wants_body:
            await self.body(listing.body)
        await self.end()

    async def error(self, error: OCIError) -> None:
        body = error.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += fields_of_error(error)
        await self._start(error.status, headers)
        await self.body(body)
        await self.end()

    async def passed_on(self, event: ASGISendEvent) -> None:
        """Send an event of the other application, and note its status and size."""
        if event["type"] == "http.response.start":
            self.status = int(event["status"])
        await self._send(event)
        if event["type"] == "http.response.body":
            self.sent += len(event["body"])

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = int(status)
        await self._send({"type": "http.response.start", "status": int(status), "headers": headers})


def _combined(fields: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return header fields by name; the values of a repeated field are joined with commas (RFC 9110, 5.3).

    So no value of a repeated field is ignored, and a repeated field that can't be a list is malformed.
    """
    combined: dict[bytes, bytes] = {}
    for name, value in fields:
        combined[name] = b"%b, %b" % (combined[name], value) if name in combined else value
    return combined


async def _until_gone(receive: ASGIReceiveCallable, answer: _Answer, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not answer.ended:  # the server says the same of a connection that it closes after the answer
        scope.cancel()

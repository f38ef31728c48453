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

from spegel_consul.metrics import CONTENT, Metrics
from spegel_consul.oci.errors import BlobUnknown, OCIError, RangeInvalid, Unauthorized, Unsupported
from spegel_consul.registry.chase import TransferCut
from spegel_consul.registry.judge import Head
from spegel_consul.registry.mirror import Mirror
from spegel_consul.registry.plan import MIRRORED_HEADER, Elsewhere, Own, Planner, unknown
from spegel_consul.registry.trace import Onward, Trace, onward
from spegel_consul.store import Blob, Store

log = structlog.get_logger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_OTHERS = {b"/v2/": CONTENT, b"/v2": CONTENT, b"/livez": "/livez", b"/readyz": "/readyz"}
"""Handlers, as the metrics call them, of the paths that are not content."""


class InternalError(OCIError):
    """A defect of ours; the log has the details."""


class ContentApp:
    """Answers the distribution API's content paths, and hands every other request to ``others``."""

    def __init__(self, others: Application, planner: Planner, store: Store, mirror: Mirror, metrics: Metrics) -> None:
        self._others = others
        self._store = store
        self._mirror = mirror
        self._planner = planner
        self._metrics = metrics
        self.inflight = dict.fromkeys((CONTENT, *_OTHERS.values()), 0)
        """How many requests are being answered, by their handlers."""
        self._own_bytes = metrics.served_bytes.labels("own")
        self._peer_bytes = metrics.served_bytes.labels("peer")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI 3 entry point."""
        path = scope.get("raw_path", b"")
        handler = _OTHERS.get(path) or (CONTENT if path.startswith(b"/v2/") else None)
        if scope["type"] != "http" or handler is None:  # nothing is counted of paths that clients make up
            await self._others(scope, receive, send)
            return
        answer = _Answer(send, scope["method"])
        started = time.perf_counter()
        self.inflight[handler] += 1
        try:
            if path in _OTHERS:
                await self._other(scope, receive, answer)
            else:
                await self._answered(scope, receive, answer)
        finally:
            self.inflight[handler] -= 1
        method = scope["method"] if scope["method"] in ("GET", "HEAD") else "other"
        labels = handler, method, answer.status or 499
        self._metrics.http_requests.labels(*labels).observe(time.perf_counter() - started)
        self._metrics.http_response_size.labels(*labels).observe(answer.sent)

    async def _other(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """The API's version check and health."""
        if scope["raw_path"].startswith(b"/v2"):
            try:
                self._planner.check(dict(scope["headers"]).get(b"authorization"))
            except OCIError as exc:
                await answer.error(exc)
                return
        await self._others(scope, receive, answer.passed_on)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        path: bytes = scope["raw_path"]
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

    async def _answer(self, scope: Scope, answer: _Answer) -> None:
        client, server = scope.get("client"), scope.get("server")
        local = client is not None and server is not None and client[0] == server[0]
        address = "" if local or client is None else client[0]
        headers = dict(scope["headers"])
        method: str = scope["method"]
        plan = self._planner.plan(
            method,
            scope["raw_path"],
            scope["query_string"],
            headers,
            from_this_machine=local,
        )
        if isinstance(plan, Own):
            try:
                async with self._store.open(plan.content.digest) as blob:
                    await self._send_own(answer, plan, blob)
                    return
            except BlobUnknown as gone:
                # garbage collection was faster than the index; peers may still have it
                if answer.status is not None:
                    raise TransferCut(f"{plan.content.digest} was deleted while it was sent") from None
                if headers.get(MIRRORED_HEADER) == b"true":
                    raise unknown(plan.request, gone.message) from None
            wanted_range = f"bytes={plan.start}-{plan.stop - 1}" if plan.partial else None
            plan = Elsewhere(plan.request, wanted_range)
        await self._send_mirrored(answer, plan, method, onward(headers), address)

    async def _send_own(self, answer: _Answer, plan: Own, blob: Blob) -> None:
        content = plan.content
        await answer.head(Head(content.digest, content.media_type, plan.start, plan.stop, content.size, plan.partial))
        if answer.wants_body:
            async for piece in blob.chunks(plan.start, plan.stop):
                await answer.body(piece)
                self._own_bytes.inc(len(piece))
        await answer.end()

    async def _send_mirrored(
        self, answer: _Answer, plan: Elsewhere, method: str, identity: Onward, client: str
    ) -> None:
        with self._mirror.begin(plan.request, method, identity, client) as trace:
            await self._relay(answer, plan, method, trace)

    async def _relay(self, answer: _Answer, plan: Elsewhere, method: str, trace: Trace) -> None:
        async with self._mirror.open(plan.request, method, plan.wanted_range, trace) as transfer:
            if answer.wants_body:
                await transfer.hold()
            await answer.head(transfer.head, served_by=transfer.served_by)
            if answer.wants_body:
                async with aclosing(transfer.chunks()) as pieces:
                    async for piece in pieces:
                        await answer.body(piece)
                        self._peer_bytes.inc(len(piece))
            await answer.end()


class _Answer:
    """One response; ``status`` is None until its head was sent."""

    def __init__(self, send: Send, method: str) -> None:
        self._send = send
        self.wants_body = method != "HEAD"
        self.sent = 0
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
        self.sent += len(piece)

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def error(self, error: OCIError) -> None:
        body = error.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if isinstance(error, RangeInvalid):
            headers.append((b"content-range", b"bytes */%d" % error.size))
        if isinstance(error, Unauthorized):
            headers.append((b"www-authenticate", error.challenge))
        if isinstance(error, Unsupported):
            headers.append((b"allow", b"GET, HEAD"))
        await self._start(error.status, headers)
        await self.body(body)
        await self.end()

    async def passed_on(self, event: dict[str, Any]) -> None:
        """Send an event of another application."""
        if event["type"] == "http.response.start":
            self.status = int(event["status"])
        await self._send(event)
        self.sent += len(event.get("body", b""))

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = int(status)
        await self._send({"type": "http.response.start", "status": int(status), "headers": headers})


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()

"""Answers simple requests on the client's socket, without ASGI: the fast path.

One task takes a request from the socket to the kernel's sendfile or splice, or over TLS to a thread that encrypts.
Manifests and other small contents of the own store come from memory. The ASGI path, with a plan of its own, answers
requests that are wrong, manifests that are promises, tags that are checked at their registries, and requests for files
that are gone.

Runtimes repeat the same few requests byte for byte. So the result of a request's bytes is remembered - the plan, and
the head of the answer except for its date - until the store's version changes. If the content is small too, the answer
needs no task at all (:meth:`FastPath.at_once`).

A new rule belongs here if it concerns sending an answer on a socket. The decision what to send is in
:mod:`spegel_consul.registry.plan`, and the header fields are in :mod:`spegel_consul.registry.answer_head`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import structlog

from spegel_consul.disk.threads import close
from spegel_consul.http.server.connection import Link
from spegel_consul.http.server.request_head import parse_simple
from spegel_consul.metrics.sidecar_metrics import CONTENT, Metrics
from spegel_consul.oci.errors import BlobUnknown, Busy, OCIError
from spegel_consul.oci.path import MIRRORED_HEADER, ContentRequest, Kind
from spegel_consul.oci.ranges import Ranges
from spegel_consul.registry.answer_head import INTERIM, HeadRenderer, fields_of, status_of
from spegel_consul.registry.content_cache import ByteCache
from spegel_consul.registry.growing import Arrived, GrowingContent
from spegel_consul.registry.known_request import KnownRequest
from spegel_consul.registry.mirror.body.multipart import Multipart
from spegel_consul.registry.mirror.body.transfer import Transfer
from spegel_consul.registry.mirror.fetch import TransferCut
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.range_parts import Part, send_parts
from spegel_consul.registry.mirror.tags.tag_ages import OwnTagIsNewer
from spegel_consul.registry.mirror.trace import Trace, as_fields, trace_headers
from spegel_consul.registry.mirror.validate_head import Head
from spegel_consul.registry.own_files import OwnFiles
from spegel_consul.registry.plan import Elsewhere, Growing, Own, Planner
from spegel_consul.registry.uploads import Upload, Uploads, upload_of
from spegel_consul.store import Store
from spegel_consul.store.blob_files import SMALL
from spegel_consul.zerocopy.send import AT_ONCE, FileAnswer, Truncated

log = structlog.get_logger(__name__)

_REMEMBERED = 256  # requests, of about a KiB each with their answers' heads
_MEMORABLE = 2048  # bytes of the longest request that is remembered


class FastPath:
    """Implements the server's protocol :class:`spegel_consul.http.server.connection.FastPath`."""

    def __init__(
        self,
        planner: Planner,
        store: Store,
        mirror: Mirror,
        cache: ByteCache,
        metrics: Metrics,
        uploads: Uploads | None = None,
    ) -> None:
        self._planner = planner
        self._uploads = uploads or Uploads()
        self._mirror = mirror
        self._files = OwnFiles(store, cache)
        self._metrics = metrics
        self._bytes = metrics.served_bytes.labels("own")
        self._peer_bytes = metrics.served_bytes.labels("peer")
        self._durations = {
            (method, status): metrics.http_requests.labels(CONTENT, method, status)
            for method in ("GET", "HEAD")
            for status in (200, 206, 404, 416, 503)
        }
        self._lengths = {key: metrics.http_response_size.labels(CONTENT, *key) for key in self._durations}
        self.inflight = 0
        """Number of requests that are being answered; of :meth:`at_once`, only those from files are counted."""
        self._known: tuple[dict[bytes, KnownRequest], dict[bytes, KnownRequest]] = ({}, {})
        self._heads = HeadRenderer()
        self._growing = GrowingContent(planner, store, mirror)

    def at_once(self, data: bytes, local: bool, /) -> bytes | FileAnswer | None:
        """Return the answer to a remembered request if it is small and in memory, or a short part of a file."""
        known = self._known[local].get(data)
        if known is None or not known.at_once or known.version != self._planner.version:
            return None
        began, plan, body = time.perf_counter(), known.plan, b""
        assert isinstance(plan, Own)
        assert known.duration is not None
        if known.method == "GET" and plan.content.size > SMALL:
            return self._file_at_once(known, plan, began)
        small = self._files.cached(plan)
        if known.method == "HEAD":
            if small is None and not self._files.is_there_now(plan):
                return None
        else:
            if small is None and (small := self._files.keep(plan, self._files.read_small_now(plan))) is None:
                return None
            body = small[slice(*plan.bounds)]
            self._bytes.inc(len(body))
            if self._uploads.pace is not None and known.upload is not Upload.NONE:
                self._uploads.pace.spend(len(body))
        known.count(len(body))
        known.duration.observe(time.perf_counter() - began)
        return b"%b%b%b" % (known.head, self._end(known), body)

    def _file_at_once(self, known: KnownRequest, plan: Own, began: float) -> FileAnswer | None:
        duration, counted = known.duration, known.upload.counted
        if counted and (self._uploads.pace is not None or self._uploads.refuses(known.upload)):
            return None
        try:
            fd = self._files.open_now(plan)
        except BlockingIOError:
            return None
        if fd is None:
            return None

        def ended(sent: int) -> None:
            self.inflight -= 1
            if counted:
                self._uploads.leave(time.perf_counter() - began)
            if (pace := self._uploads.pace_of(known.upload)) is not None:
                pace.spend(sent)
            self._bytes.inc(sent)
            known.count(sent)
            if sent == stop - start and duration is not None:
                duration.observe(time.perf_counter() - began)

        start, stop = plan.bounds
        self.inflight += 1
        if counted:
            self._uploads.enter(known.upload)
        return FileAnswer(known.head + self._end(known), fd, start, stop, ended)

    async def __call__(self, data: bytes, link: Link, /) -> bool:
        """Answer the request and return True, or send nothing and return False."""
        started = time.perf_counter()
        known = self._look(data, link.local)
        if known is None:
            return False
        self.inflight += 1
        try:
            if known.upload.counted and not isinstance(known.plan, Growing):
                status = await self._uploaded(known, link)
            elif isinstance(known.plan, Own):
                status = await self._own(known, known.plan, link)
            else:
                status = await self._mirrored(known, known.plan, link)
        except Arrived:  # the next plan sends what the store has now
            return await self(data, link)
        except OwnTagIsNewer:
            own = self._planner.own(known.plan.request)
            status = (
                await self._own(self._own_request(known.version, known.method, own, known.upload), own, link)
                if own
                else None
            )
        finally:
            self.inflight -= 1
        if status is None:
            return False
        self._durations[known.method, status].observe(time.perf_counter() - started)
        return True

    def _look(self, data: bytes, local: bool) -> KnownRequest | None:
        """Return the result of the request, remembered or new, or None if only the ASGI path can answer it."""
        memory, version = self._known[local], self._planner.version
        known = memory.get(data)
        if known is not None and known.version == version:
            return known
        request = parse_simple(data)
        if request is None:
            return None
        method = request.method
        try:
            plan = self._planner.plan(method, request.path, request.query, request.headers, from_this_machine=local)
        except OCIError:
            return None
        checked = self._mirror.checks(plan.request) and request.headers.get(MIRRORED_HEADER) != b"true"
        if plan.request.promises or checked:
            return None
        if isinstance(plan, Own):
            known = self._own_request(version, method, plan, upload_of(method, request.headers, plan))
            if MIRRORED_HEADER in request.headers and (identity := trace_headers(request.headers)):
                log.debug("asked by a peer", key=plan.request.key, **as_fields(identity))
        else:
            identity = trace_headers(request.headers)
            upload = upload_of(method, request.headers, plan)
            known = KnownRequest(version, method, plan, trace_headers=identity, upload=upload)
        if len(data) <= _MEMORABLE and not isinstance(plan, Growing) and self._planner.is_lasting(plan.request):
            if len(memory) >= _REMEMBERED:
                memory.clear()
            memory[data] = known
        return known

    async def _uploaded(self, known: KnownRequest, link: Link) -> int | None:
        """Send a body to a peer, or refuse it. Return as :meth:`_own`."""
        try:
            self._uploads.enter(known.upload)  # not by one(), because a context manager costs a hit much more
            began = time.perf_counter()
            try:
                if isinstance(known.plan, Own):
                    return await self._own(known, known.plan, link)
                return await self._mirrored(known, known.plan, link)
            finally:
                self._uploads.leave(time.perf_counter() - began)
        except Busy as exc:
            await link.send(self._heads.error(exc, known.method))
            return exc.status.value

    def _own_request(self, version: int, method: str, plan: Own, upload: Upload) -> KnownRequest:
        # several ranges are not answered at once, because each answer has a boundary, and so a head, of its own
        short = method == "HEAD" or plan.content.size <= SMALL or plan.bounds[1] - plan.bounds[0] <= AT_ONCE
        key = method, 206 if plan.partial else 200
        tag = plan.request.reference if plan.request.reference.digest is None else None
        at_once, duration, length = short and len(plan.spans) <= 1, self._durations[key], self._lengths[key]
        head = self._head(plan)
        return KnownRequest(version, method, plan, head, at_once, duration, length, tag=tag, upload=upload)

    def _end(self, known: KnownRequest) -> bytes:
        tag_age = None if known.tag is None else self._mirror.peers.tag_ages.own(known.tag)
        return self._heads.end(tag_age, None if known.upload is Upload.NONE else self._uploads.streams)

    async def _own(self, known: KnownRequest, plan: Own, link: Link) -> int | None:
        """Send content of the own store. Return the status that was sent, or None if nothing was sent."""
        content = plan.content
        if len(plan.spans) > 1:
            return await self._own_parts(known, plan, link)
        head = known.head + self._end(known)
        if known.method == "HEAD":
            if self._files.cached(plan) is None and not await self._files.is_there(plan):
                return None
            await link.send(head)
            known.count(0)
        elif content.size <= SMALL:
            small = await self._files.small(plan)
            if small is None:
                return None
            body = small[slice(*plan.bounds)]
            await link.send(head + body)
            if (pace := self._uploads.pace_of(known.upload)) is not None:
                pace.spend(len(body))
            self._bytes.inc(len(body))
            known.count(len(body))
        else:
            fd = await self._files.open(plan)
            if fd is None:
                return None

            def count(sent: int) -> None:
                self._bytes.inc(sent)
                known.count(sent)

            start, stop = plan.bounds
            try:
                await link.outlet(head, self._uploads.pace_of(known.upload)).file(fd, start, stop, count)
            finally:
                close(fd)
        return 206 if plan.partial else 200

    async def _own_parts(self, known: KnownRequest, plan: Own, link: Link) -> int | None:
        """Like :meth:`_own`, for several ranges of the content."""
        content = plan.content
        multipart = Multipart(content.media_type, plan.spans)
        head = self._head(plan, multipart) + self._end(known)
        if content.size <= SMALL:
            small = await self._files.small(plan)
            if small is None:
                return None
            body = b"".join(
                multipart.before(place) + small[span.start : span.stop] for place, span in enumerate(plan.spans)
            )
            await link.send(head + body + multipart.end)
            if (pace := self._uploads.pace_of(known.upload)) is not None:
                pace.spend(len(body))
            self._bytes.inc(sum(span.length for span in plan.spans))
        else:
            fd = await self._files.open(plan)
            if fd is None:
                return None
            pace = self._uploads.pace_of(known.upload)
            try:
                for place, span in enumerate(plan.spans):
                    before = head + multipart.before(place)
                    await link.outlet(before, pace).file(fd, span.start, span.stop, self._bytes.inc)
                    head = b""
            finally:
                close(fd)
            await link.send(multipart.end)
        self._lengths["GET", 206].observe(multipart.length)
        return 206

    async def _mirrored(self, known: KnownRequest, plan: Elsewhere | Growing, link: Link) -> int:
        """Send content of a peer or a download, or the error if there is none. Return the status that was sent."""
        method = known.method
        try:
            if isinstance(plan, Growing):
                return await self._to_follower(plan, link)
            trace = self._mirror.begin(plan.request, method, known.trace_headers, link.client)
            with trace, trace.while_there(link.check_client):
                if plan.wanted is not None and plan.wanted.several:
                    return await self._relay_parts(plan.request, plan.wanted, link, trace)
                return await self._from_a_peer(method, plan, link, trace)
        except OCIError as exc:
            await link.send(self._heads.error(exc, method))
            return exc.status.value
        except TransferCut as exc:
            self._metrics.transfers_cut.inc()
            log.warning("transfer cut", key=plan.request.key, error=str(exc))
            raise Truncated from None

    async def _to_follower(self, plan: Growing, link: Link) -> int:
        send_interim = partial(link.send, INTERIM)
        async with self._growing.open(plan, send_interim, link.check_client) as followed:
            # a follower that waits for its first byte is no upload yet
            with self._uploads.one(Upload.FOLLOWED):
                fields = fields_of(followed.head, growing=True, load=self._uploads.streams)
                head = self._heads.whole(followed.head, fields)
                status, lengths = status_of(followed.head), [0]

                def count(sent: int) -> None:
                    self._bytes.inc(sent)
                    lengths.append(sent)

                try:
                    await followed.send(link.outlet(head, self._uploads.pace), count)
                finally:
                    self._lengths["GET", status].observe(sum(lengths))
        return status

    async def _from_a_peer(self, method: str, plan: Elsewhere, link: Link, trace: Trace) -> int:
        if method == "GET" and plan.request.kind is Kind.BLOB:
            transfer = await self._mirror.at_once(plan.request, plan.range_header, trace)
            if transfer is not None:
                try:
                    async with transfer:
                        status = await self._relay(method, transfer, link, trace)
                except BlobUnknown as exc:
                    self._mirror.missed(plan.request, exc.message)
                    raise
                self._mirror.served(plan.request)
                return status
        async with self._mirror.open(plan.request, method, plan.range_header, trace) as transfer:
            return await self._relay(method, transfer, link, trace)

    async def _relay(self, method: str, transfer: Transfer, link: Link, trace: Trace) -> int:
        if method == "GET":
            await transfer.hold()
        head = transfer.head
        rendered = self._heads.whole(head, fields_of(head, transfer.served_by))
        if method == "HEAD":
            await link.send(rendered)
        else:
            await self._carry(transfer, rendered, link, trace, self._lengths[method, status_of(head)].observe)
        return status_of(head)

    async def _relay_parts(self, request: ContentRequest, wanted: Ranges, link: Link, trace: Trace) -> int:
        lengths: list[int] = []

        async def send(part: Part) -> None:
            head = b""
            if part.first:
                fields = fields_of(part.head, part.transfer.served_by, part.multipart)
                head = self._heads.whole(part.head, fields)
            lengths.append(len(part.before))
            await self._carry(part.transfer, head + part.before, link, trace, lengths.append)
            await link.send(part.after)
            lengths.append(len(part.after))

        try:
            await send_parts(self._mirror, request, wanted, trace, send)
        finally:
            if lengths:
                self._lengths["GET", 206].observe(sum(lengths))
        return 206

    async def _carry(
        self, transfer: Transfer, head: bytes, link: Link, trace: Trace, count: Callable[[int], object]
    ) -> None:
        """Send ``head`` and the body. At the end, call ``count`` with the number of the body's bytes that were sent."""
        whole = False
        try:
            await transfer.send(link.outlet(head))
            whole = True
        finally:
            sent = transfer.head.stop - transfer.head.start if whole else trace.sent()
            self._peer_bytes.inc(sent)
            count(sent)

    def _head(self, plan: Own, multipart: Multipart | None = None) -> bytes:
        content = plan.content
        head = Head(content.digest, content.media_type, *plan.bounds, content.size, plan.partial)
        return self._heads.render(head, fields_of(head, multipart=multipart))

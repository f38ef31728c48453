# The short road: from a request on the socket to the kernel's sendfile or splice, in one task.  Manifests and other
# small contents of the own store come from memory.  What can't be planned - a request that is wrong in some way - and
# a file that has gone are left to the long road, which plans again and has an answer to everything.

"""Answers simple requests on the socket itself."""

from __future__ import annotations

import os
import time
from email.utils import formatdate

import structlog

from spegel_consul.metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import OCIError, RangeInvalid
from spegel_consul.registry.cache import ByteCache
from spegel_consul.registry.mirror import Mirror, TransferCut
from spegel_consul.registry.plan import Elsewhere, Own, Planner
from spegel_consul.server.connection import Link
from spegel_consul.server.head import RequestHead
from spegel_consul.server.sending import Truncated, send_bytes, send_file
from spegel_consul.store import Store

log = structlog.get_logger(__name__)

SMALL = 64 << 10
"""Bytes up to which content is read at once, sent with its head, and kept in memory."""


class ShortRoad:
    """Callable as the server's short road; see :data:`spegel_consul.server.connection.ShortRoad`."""

    def __init__(self, planner: Planner, store: Store, mirror: Mirror, cache: ByteCache, metrics: Metrics) -> None:
        self._planner = planner
        self._store = store
        self._mirror = mirror
        self._cache = cache
        self._metrics = metrics
        self._bytes = metrics.served_bytes.labels("own")
        self._peer_bytes = metrics.served_bytes.labels("peer")
        self._durations = {
            (method, status): metrics.http_requests.labels("content", method, status)
            for method in ("GET", "HEAD")
            for status in (200, 206, 404, 416)
        }
        self._second = 0
        self._date = b""

    async def __call__(self, request: RequestHead, link: Link) -> bool:
        """Answer and return True, or send nothing and return False."""
        started = time.perf_counter()
        try:
            plan = self._planner.plan(
                request.method, request.path, request.query, request.headers, from_this_machine=link.local
            )
        except OCIError:
            return False
        if isinstance(plan, Own):
            status = await self._own(request, plan, link)
        else:
            status = await self._mirrored(request, plan, link)
        if status is None:
            return False
        self._durations[request.method, status].observe(time.perf_counter() - started)
        return True

    async def _own(self, request: RequestHead, plan: Own, link: Link) -> int | None:
        """Send what the own store has; the status that was sent, or None if nothing was."""
        content, length = plan.content, plan.stop - plan.start
        if request.method == "HEAD":
            if self._cache.get(content.digest) is None and not self._is_there(plan):
                return None
            await send_bytes(link.sock, self._head(plan))
        elif (small := self._cache.get(content.digest)) is not None:
            await send_bytes(link.sock, self._head(plan) + small[plan.start : plan.stop])
            self._bytes.inc(length)
        else:
            fd = self._open(plan)
            if fd is None:
                return None
            try:
                if content.size <= SMALL:
                    small = os.pread(fd, content.size, 0)
                    if Digest.of(small, content.digest.algorithm) != content.digest:
                        return None  # a file that is still being written, or a disk that lies
                    self._cache.put(content.digest, small)
                    await send_bytes(link.sock, self._head(plan) + small[plan.start : plan.stop])
                else:
                    await send_file(link.sock, self._head(plan), fd, plan.start, plan.stop)
            finally:
                os.close(fd)
            self._bytes.inc(length)
        return 206 if plan.partial else 200

    async def _mirrored(self, request: RequestHead, plan: Elsewhere, link: Link) -> int:
        """Send what a peer has, or the error if none has it; the status that was sent."""
        try:
            async with self._mirror.open(plan.request, request.method, plan.wanted_range) as transfer:
                head = transfer.head
                rendered = self._render(
                    head.digest, head.media_type, head.start, head.stop, head.size, head.partial, transfer.served_by
                )
                if request.method == "HEAD":
                    await send_bytes(link.sock, rendered)
                else:
                    await transfer.relay(link.sock, rendered)
                    self._peer_bytes.inc(head.stop - head.start)
                return 206 if head.partial else 200
        except OCIError as exc:
            await send_bytes(link.sock, self._error(exc, request.method))
            return exc.status.value
        except TransferCut as exc:
            self._metrics.transfers_cut.inc()
            log.warning("transfer cut", path=request.path.decode("latin-1"), error=str(exc))
            raise Truncated from None

    def _is_there(self, plan: Own) -> bool:
        path = self._store.file(plan.content.digest)
        try:
            return path is not None and os.stat(path).st_size == plan.content.size
        except OSError:
            return False

    def _open(self, plan: Own) -> int | None:
        """The file of the content, or None if it is not what the index says."""
        path = self._store.file(plan.content.digest)
        if path is None:
            return None
        try:
            # not blocking, lest a FIFO that somebody put there hold everybody
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        if os.fstat(fd).st_size != plan.content.size:
            os.close(fd)
            return None
        return fd

    def _head(self, plan: Own) -> bytes:
        content = plan.content
        return self._render(content.digest, content.media_type, plan.start, plan.stop, content.size, plan.partial)

    def _render(
        self, digest: Digest, media_type: str, start: int, stop: int, size: int, partial: bool, served_by: str = ""
    ) -> bytes:
        """The head of an answer, the same bytes as the long road's."""
        fields = b"content-type: %b\r\ncontent-length: %d\r\ndocker-content-digest: %b\r\naccept-ranges: bytes\r\n" % (
            media_type.encode("latin-1", "replace"),
            stop - start,
            digest.encode(),
        )
        if partial:
            fields += b"content-range: bytes %d-%d/%d\r\n" % (start, stop - 1, size)
        if served_by:
            fields += b"x-spegel-served-by: %b\r\n" % served_by.encode()
        return b"HTTP/1.1 %d \r\n%bdate: %b\r\n\r\n" % (206 if partial else 200, fields, self._now())

    def _error(self, error: OCIError, method: str) -> bytes:
        body = error.body()
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        if isinstance(error, RangeInvalid):
            fields += b"content-range: bytes */%d\r\n" % error.size
        head = b"HTTP/1.1 %d \r\n%bdate: %b\r\n\r\n" % (error.status.value, fields, self._now())
        return head if method == "HEAD" else head + body

    def _now(self) -> bytes:
        """The Date field's value, rendered once a second."""
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True).encode()
        return self._date

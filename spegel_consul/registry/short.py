# The short road: content of the own store, from the socket's request to the kernel's sendfile, in one task and
# without a context switch.  Manifests and other small contents come from memory.  Whatever is not simply there - an
# error, a peer's content, a file that has gone - is left to the long road, which plans again and answers.

"""Answers simple requests for content that is here, on the socket itself."""

from __future__ import annotations

import os
import time
from email.utils import formatdate

from spegel_consul.metrics import Metrics
from spegel_consul.oci.errors import OCIError
from spegel_consul.registry.cache import ByteCache
from spegel_consul.registry.plan import Own, Planner
from spegel_consul.server.connection import Link
from spegel_consul.server.head import RequestHead
from spegel_consul.server.sending import send_bytes, send_file
from spegel_consul.store import Store

SMALL = 64 << 10
"""Bytes up to which content is read at once, sent with its head, and kept in memory."""


class ShortRoad:
    """Callable as the server's short road; see :data:`spegel_consul.server.connection.ShortRoad`."""

    def __init__(self, planner: Planner, store: Store, cache: ByteCache, metrics: Metrics) -> None:
        self._planner = planner
        self._store = store
        self._cache = cache
        self._bytes = metrics.served_bytes.labels("own")
        self._durations = {
            (method, status): metrics.http_requests.labels("content", method, status)
            for method in ("GET", "HEAD")
            for status in (200, 206)
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
        if not isinstance(plan, Own):
            return False
        content, length = plan.content, plan.stop - plan.start
        if request.method == "HEAD":
            await send_bytes(link.sock, self._head(plan))
        elif (small := self._cache.get(content.digest)) is not None:
            await send_bytes(link.sock, self._head(plan) + small[plan.start : plan.stop])
            self._bytes.inc(length)
        else:
            fd = self._open(plan)
            if fd is None:
                return False
            try:
                if content.size <= SMALL:
                    small = os.pread(fd, content.size, 0)
                    self._cache.put(content.digest, small)
                    await send_bytes(link.sock, self._head(plan) + small[plan.start : plan.stop])
                else:
                    await send_file(link.sock, self._head(plan), fd, plan.start, plan.stop)
            finally:
                os.close(fd)
            self._bytes.inc(length)
        self._durations[request.method, 206 if plan.partial else 200].observe(time.perf_counter() - started)
        return True

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
        """The same bytes as the long road's."""
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True).encode()
        content = plan.content
        fields = b"content-type: %b\r\ncontent-length: %d\r\ndocker-content-digest: %b\r\naccept-ranges: bytes\r\n" % (
            content.media_type.encode("latin-1", "replace"),
            plan.stop - plan.start,
            content.digest.encode(),
        )
        if not plan.partial:
            return b"HTTP/1.1 200 \r\n%bdate: %b\r\n\r\n" % (fields, self._date)
        span = b"content-range: bytes %d-%d/%d\r\n" % (plan.start, plan.stop - 1, content.size)
        return b"HTTP/1.1 206 \r\n%b%bdate: %b\r\n\r\n" % (fields, span, self._date)

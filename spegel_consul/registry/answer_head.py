"""The head of an answer with content, the same on both paths. New header fields of such answers belong here."""

from __future__ import annotations

import math
import time
from email.utils import formatdate

from spegel_consul.oci.errors import Busy, OCIError, RangeInvalid, Unauthorized, Unsupported
from spegel_consul.oci.path import BUSY_HEADER, GROWING_HEADER, LOAD_HEADER, TAG_AGE_HEADER, TAG_CHECK_HEADER
from spegel_consul.registry.mirror.body.multipart import Multipart
from spegel_consul.registry.mirror.validate_head import Head

INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
"""The interim answer, as :mod:`spegel_consul.http.server.hypercorn_protocol` sends it too."""


def status_of(head: Head) -> int:
    """Return the status of an answer with ``head``."""
    return 206 if head.partial else 200


def fields_of(
    head: Head,
    served_by: str | None = None,
    multipart: Multipart | None = None,
    *,
    growing: bool = False,
    load: int | None = None,
) -> list[tuple[bytes, bytes]]:
    """Return the header fields of an answer with ``head``.

    ``served_by``: ``host:port`` of the peer that has the content; ``multipart``: the frame of an answer with several
    ranges, which has no Content-Range of its own because each part has one; ``growing``: whether this node is still
    downloading the content; ``load``: the number of bodies that it is sending to peers, told to peers only.
    """
    content_type = head.media_type if multipart is None else multipart.content_type
    fields = [
        (b"content-type", content_type.encode("latin-1", "replace")),
        (b"content-length", b"%d" % (head.stop - head.start if multipart is None else multipart.length)),
        (b"docker-content-digest", head.digest.encode()),
        (b"accept-ranges", b"bytes"),
    ]
    if head.partial and multipart is None:
        fields.append((b"content-range", b"bytes %d-%d/%d" % (head.start, head.stop - 1, head.size)))
    if head.tag_age is not None:
        fields.append((TAG_AGE_HEADER, b"%d" % head.tag_age))
    if head.tag_check:
        fields.append((TAG_CHECK_HEADER, head.tag_check.encode()))
    if served_by is not None:
        fields.append((b"x-spegel-served-by", served_by.encode()))
    if growing:
        fields.append((GROWING_HEADER, b"true"))
    if load is not None:
        fields.append((LOAD_HEADER, b"%d" % load))
    return fields


def fields_of_error(error: OCIError) -> list[tuple[bytes, bytes]]:
    """Return the header fields that belong to an answer with ``error``, besides those of its body."""
    if isinstance(error, RangeInvalid):
        return [(b"content-range", b"bytes */%d" % error.size)]
    if isinstance(error, Unauthorized):
        return [(b"www-authenticate", error.challenge)]
    if isinstance(error, Unsupported):
        return [(b"allow", b"GET, HEAD")]
    if isinstance(error, Busy):
        return [(BUSY_HEADER, b"%.2f" % error.seconds), (b"retry-after", b"%d" % math.ceil(error.seconds))]
    return []


class HeadRenderer:
    """Renders heads as bytes of HTTP/1.1, for the fast path. An ASGI server does this itself."""

    def __init__(self) -> None:
        self._second = 0
        self._date = b""

    def render(self, head: Head, fields: list[tuple[bytes, bytes]]) -> bytes:
        """Render the head of an answer with ``fields`` (:func:`fields_of`) up to its date."""
        return b"HTTP/1.1 %d \r\n%bdate: " % (status_of(head), b"".join(b"%b: %b\r\n" % each for each in fields))

    def whole(self, head: Head, fields: list[tuple[bytes, bytes]]) -> bytes:
        """Render all of the head of an answer."""
        return self.render(head, fields) + self.end()

    def end(self, tag_age: int | None = None, load: int | None = None) -> bytes:
        """Render the rest of a rendered head: its date, and what is another each second.

        ``tag_age``: the age of an own tag; ``load``: the bodies that are being sent to peers, for a peer.
        """
        rest = self.now()
        if tag_age is not None:
            rest += b"\r\n%b: %d" % (TAG_AGE_HEADER, tag_age)
        if load is not None:
            rest += b"\r\n%b: %d" % (LOAD_HEADER, load)
        return rest + b"\r\n\r\n"

    def error(self, error: OCIError, method: str) -> bytes:
        """Render the answer to a request that failed with ``error``."""
        body = error.body()
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        fields += b"".join(b"%b: %b\r\n" % each for each in fields_of_error(error))
        head = b"HTTP/1.1 %d \r\n%bdate: %b\r\n\r\n" % (error.status.value, fields, self.now())
        return head if method == "HEAD" else head + body

    def now(self) -> bytes:
        """Return the value of the Date field, which is rendered once a second."""
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True).encode()
        return self._date

"""The head of an answer with content, the same on both paths. New header fields of such answers belong here."""

from __future__ import annotations

from spegel_consul.registry.mirror.body.multipart import Multipart
from spegel_consul.registry.mirror.validate import Head


def status_of(head: Head) -> int:
    """Return the status of an answer with ``head``."""
    return 206 if head.partial else 200


def fields_of(
    head: Head, served_by: str | None = None, multipart: Multipart | None = None
) -> list[tuple[bytes, bytes]]:
    """Return the header fields of an answer with ``head``.

    ``served_by``: ``host:port`` of the peer that has the content; ``multipart``: the frame of an answer with several
    ranges, which has no Content-Range of its own because each part has one.
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
    if served_by is not None:
        fields.append((b"x-spegel-served-by", served_by.encode()))
    return fields

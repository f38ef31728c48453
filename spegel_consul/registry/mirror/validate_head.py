"""Decides whether the head of a peer's answer is acceptable.

A peer's claims are believed only as far as they fit the question: the status, the length, the range, the digest. The
media type of a manifest is read from the manifest, whose bytes are verified. A runtime with a wrong media type would
look for layers in an index, or for platforms in a manifest. If the manifest has no media type of its own, the peer
decides between Docker's type and OCI's of the same kind, because the peer has it from the descriptor.

A new rule belongs here if one answer alone is enough to apply it. Comparisons of several answers belong to
:mod:`spegel_consul.registry.mirror.fetch`.
"""

from __future__ import annotations

import re
from dataclasses import field, replace

from spegel_consul.http.peer_client import PeerResponse
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid, RangeInvalid
from spegel_consul.oci.media import OCTET_STREAM, header_safe, manifest_media_type
from spegel_consul.oci.path import BUSY_HEADER, ContentRequest
from spegel_consul.oci.ranges import parse_ranges
from spegel_consul.peers import PeerError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})\Z", re.ASCII)
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?\Z", re.ASCII)
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})\Z", re.ASCII)


class PeerBusy(PeerError):
    """The peer sends as many bodies as it may, and expects room in ``hint`` seconds, as far as its claim is one."""

    def __init__(self, hint: float) -> None:
        super().__init__("is busy")
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Head:
    """A peer's claims about the content that it is about to send: ``[start, stop)`` of ``size`` bytes.

    ``disputed``: manifests or other peers claim another size, so the content is held until it is verified, whatever
    its size. ``tag_age``: the age of the tag in seconds, if a tag was asked for and the peer tells it;
    ``tag_check``: the result of its check at the registry, if there was one.
    """

    digest: Digest
    media_type: str
    start: int
    stop: int
    size: int
    partial: bool
    disputed: bool = field(default=False, compare=False)
    tag_age: int | None = field(default=None, compare=False)
    tag_check: str = field(default="", compare=False)


def judge(
    response: PeerResponse, request: ContentRequest, range_header: str | None, expected: Head | None = None
) -> Head:
    """Return the head of an acceptable answer. Raises PeerBusy, another PeerError, or RangeInvalid if it answered 416.

    ``expected``: the required head, because other bytes of the same content have been sent already.
    """
    status = response.status
    content_range = response.header(b"content-range") or ""
    if status == 416 and range_header is not None and expected is None:
        unsatisfied = _UNSATISFIED.match(content_range)
        if unsatisfied is not None:
            raise RangeInvalid(int(unsatisfied[1]))
    if status == 503 and (busy := response.header(BUSY_HEADER)) is not None:
        raise PeerBusy(seconds(busy))
    if status != 200 and not (status == 206 and range_header is not None):
        raise PeerError(f"answered {status}", broken=not 400 <= status < 600)
    if response.header(b"transfer-encoding") is not None:
        raise PeerError("did not frame the content by its length", broken=True)
    if (response.header(b"content-encoding") or "identity").lower() != "identity":
        raise PeerError("sent the content in an encoding that was not requested", broken=True)
    length = response.header(b"content-length") or ""
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise PeerError("did not say how long the content is", broken=True)
    start, stop, size = 0, int(length), int(length)
    if status == 206:
        span = _CONTENT_RANGE.match(content_range)
        if span is None:
            raise PeerError(f"answered 206 with content-range {content_range[:60]!r}", broken=True)
        start, stop, size = int(span[1]), int(span[2]) + 1, int(span[3])
        if stop - start != int(length) or (start, stop) != _asked_for(range_header, size):
            message = f"answered 206 with content-range {content_range[:60]!r} and length {length}"
            raise PeerError(message, broken=True)
    asked = request.reference.digest
    try:
        digest = Digest(response.header(b"docker-content-digest") or asked or "")
    except DigestInvalid:
        raise PeerError("did not say which digest the content has", broken=True) from None
    if asked is not None and digest != asked:
        raise PeerError(f"answered with another digest, {digest}", broken=True)
    media_type = header_safe(response.header(b"content-type") or OCTET_STREAM)
    head = Head(digest, media_type, start, stop, size, status == 206)
    if expected is not None and head != replace(expected, media_type=media_type):
        raise PeerError("answered with other bytes than those that are missing")
    return head


def seconds(field: str) -> float:
    """Return the seconds in a header field's value; 0 for a value that is no number of seconds."""
    found = _SECONDS.match(field)
    return float(found[0]) if found is not None else 0.0


def _asked_for(range_header: str | None, size: int) -> tuple[int, int] | None:
    """Return the start and stop of the only range of ``range_header`` within ``size`` bytes, or None."""
    wanted = parse_ranges(range_header)
    try:
        spans = wanted.within(size) if wanted is not None else ()
    except RangeInvalid:
        return None
    return (spans[0].start, spans[0].stop) if len(spans) == 1 else None


def type_of(manifest: bytes, said: str | None = None) -> str:
    """Return the media type in a peer's manifest, or ``said`` if the manifest has none and ``said`` fits its shape.

    Raises PeerError if the bytes are no manifest. Schema 1 is refused too, because its digest is not that of its
    bytes, and no runtime keeps it unchanged.
    """
    found = manifest_media_type(manifest, said)
    if found is None:
        raise PeerError("has other content than a manifest under this digest")
    return found

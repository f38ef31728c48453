# What a peer says is believed only as far as it fits what was asked: the status, the length, the range, the digest.
# What a manifest is stands in the manifest, whose bytes are verified: a runtime that believed another's word for it
# would look for layers in an index, or for platforms in a manifest.  Only between Docker's type and OCI's of the same
# kind is a peer believed, if the manifest does not say: the peer has it from the descriptor.

"""Whether the head of a peer's answer is acceptable."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from spegel_consul.http.peer_client import PeerError, PeerResponse
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid, RangeInvalid
from spegel_consul.oci.media import OCTET_STREAM, header_safe, manifest_media_type
from spegel_consul.oci.path import ContentRequest
from spegel_consul.oci.ranges import parse_ranges

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})\Z", re.ASCII)
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Head:
    """What a peer says of the content that it is about to send: ``[start, stop)`` of ``size`` bytes.

    ``disputed``: somebody says another size, so the content is held until it is verified, however large it is.
    """

    digest: Digest
    media_type: str
    start: int
    stop: int
    size: int
    partial: bool
    disputed: bool = field(default=False, compare=False)


def judge(
    response: PeerResponse, request: ContentRequest, range_header: str | None, expected: Head | None = None
) -> Head:
    """The head of an acceptable answer. Raises PeerError, or RangeInvalid when the peer says so.

    ``expected``: what the answer must say because other bytes of the same content have been sent already.
    """
    status = response.status
    content_range = response.header(b"content-range") or ""
    if status == 416 and range_header is not None and expected is None:
        unsatisfied = _UNSATISFIED.match(content_range)
        if unsatisfied is not None:
            raise RangeInvalid(int(unsatisfied[1]))
    if status != 200 and not (status == 206 and range_header is not None):
        raise PeerError(f"answered {status}", broken=not 400 <= status < 600)
    if response.header(b"transfer-encoding") is not None:
        raise PeerError("did not frame the content by its length", broken=True)
    if (response.header(b"content-encoding") or "identity").lower() != "identity":
        raise PeerError("sent the content in an encoding that nobody asked for", broken=True)
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


def _asked_for(range_header: str | None, size: int) -> tuple[int, int] | None:
    """The start and the stop of the only range of ``range_header``, or None if there is none in so many bytes."""
    wanted = parse_ranges(range_header)
    try:
        spans = wanted.within(size) if wanted is not None else ()
    except RangeInvalid:
        return None
    return (spans[0].start, spans[0].stop) if len(spans) == 1 else None


def type_of(manifest: bytes, said: str | None = None) -> str:
    """The media type that a peer's manifest has by its own bytes, or else ``said`` if it fits them.

    Raises PeerError if it is no manifest.

    Schema 1 is none either: its digest is not that of its bytes, and no runtime keeps it as it was.
    """
    found = manifest_media_type(manifest, said)
    if found is None:
        raise PeerError("has other content than a manifest under this digest")
    return found

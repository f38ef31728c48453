"""The frame around several ranges of a blob: ``multipart/byteranges`` (RFC 9110, section 14.6, and RFC 2046, 5.1.1).

The boundary is random for each answer. Otherwise bytes of an image or of a peer could contain the boundary, and a
client would take the following bytes for another part. Rules for the bytes between the parts belong here.
"""

from __future__ import annotations

import secrets
from dataclasses import field

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.ranges import ByteRange


def _boundary() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Multipart:
    """The frame of an answer with the ranges ``spans`` of content with ``media_type``.

    The body consists of :meth:`before` and the bytes for each span, and of :attr:`end`.
    """

    media_type: str
    spans: tuple[ByteRange, ...]
    boundary: str = field(default_factory=_boundary)

    @property
    def content_type(self) -> str:
        """The value of the answer's Content-Type header field."""
        return f"multipart/byteranges; boundary={self.boundary}"

    @property
    def length(self) -> int:
        """Number of bytes of the whole body."""
        parts = sum(len(self.before(place)) + span.length for place, span in enumerate(self.spans))
        return parts + len(self.end)

    def before(self, place: int) -> bytes:
        """Return the delimiter and header fields before the bytes of the span at index ``place``."""
        lines = (
            f"--{self.boundary}",
            f"content-type: {self.media_type}",
            f"content-range: {self.spans[place].content_range}",
        )
        return b"\r\n" * bool(place) + "\r\n".join((*lines, "", "")).encode("latin-1", "replace")

    @property
    def end(self) -> bytes:
        """The delimiter after the bytes of the last span."""
        return f"\r\n--{self.boundary}--\r\n".encode()

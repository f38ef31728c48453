"""The frame around several ranges of a blob: ``multipart/byteranges`` (RFC 9110, section 14.6, and RFC 2046, 5.1.1).

The boundary is drawn by lot for each answer. Bytes of an image or of a peer could else contain the boundary, and a
client would take what follows for a part of its own. Whatever stands between the bytes of parts belongs here.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from spegel_consul.oci.ranges import ByteRange


def _boundary() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Multipart:
    """An answer with the bytes ``spans`` of content of ``media_type``.

    Its body is, for each span, :meth:`before` and the bytes, and in the end :attr:`end`.
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
        """Bytes of the whole body."""
        parts = sum(len(self.before(place)) + span.length for place, span in enumerate(self.spans))
        return parts + len(self.end)

    def before(self, place: int) -> bytes:
        """What comes before the bytes of a span."""
        lines = (
            f"--{self.boundary}",
            f"content-type: {self.media_type}",
            f"content-range: {self.spans[place].content_range}",
        )
        return b"\r\n" * bool(place) + "\r\n".join((*lines, "", "")).encode("latin-1", "replace")

    @property
    def end(self) -> bytes:
        """What comes after the bytes of the last span."""
        return f"\r\n--{self.boundary}--\r\n".encode()

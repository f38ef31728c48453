"""Byte ranges of RFC 9110, section 14, as far as a registry needs them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spegel_consul.oci.errors import RangeInvalid

# 19 digits hold any file size; more would only make int() slow
_SINGLE = re.compile(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*\Z", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes ``[start, stop)`` of content of ``size`` bytes."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """The value of a Content-Range header field."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The range that a Range header asks of content of ``size`` bytes, or None to send all of it.

    A malformed header, another unit or several ranges are ignored, as section 14.2 allows.
    Raises RangeInvalid if the range is well formed but no byte of it exists.
    """
    match = _SINGLE.match(header) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if first:
        start = int(first)
        stop = min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    elif last:
        start, stop = max(size - int(last), 0), size
    else:
        return None
    if start >= stop:
        raise RangeInvalid(size)
    return ByteRange(start, stop, size)

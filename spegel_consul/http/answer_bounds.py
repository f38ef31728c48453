"""The bounds of an answer to a client: bytes, encoding, and the memory of its decoded JSON.

An answer is decoded only after it has been received within its limits. Bodies without encoding are requested, and an
encoded body is refused, because a few megabytes of gzip unpack to gigabytes. JSON unpacks too: the three bytes of
``{},`` become 72 bytes of objects. So the structural characters of an answer are counted while it is received, and an
answer whose objects would take more than four times its limit is refused before it is decoded.

A new bound belongs here if it needs only the bytes of an answer; time belongs to the clients.
"""

from __future__ import annotations

OBJECTS = {b"{": 110, b"[": 60, b",": 70, b":": 20}
"""Bytes of memory that are assumed for the object that follows each structural character of JSON.

A list of services of Consul takes four fifths of the sum, hostile JSON at most one and a half times as much.
"""
EXPANSION = 4
"""The estimated memory of a decoded answer, its text included, may be so many times the limit of the call."""
_LEAST_MEMORY = 4 << 20  # bytes; a limit of some KiB needs no second one


class AnswerRefused(Exception):
    """The answer is too long, too dense or encoded; the message is one line."""


class BoundedBody:
    """The body of an answer of at most ``limit`` bytes, collected piece by piece.

    The constructor gets the header fields Content-Encoding and Content-Length, empty if there is none. It raises
    AnswerRefused if they exceed the bounds.
    """

    def __init__(self, limit: int, encoding: str, length: str) -> None:
        if encoding.strip().lower() not in ("", "identity"):
            raise AnswerRefused(f"the answer has an encoding ({encoding.strip()[:40]!r}) that was not requested")
        if length.isascii() and length.isdigit() and int(length[:20]) > limit:
            raise AnswerRefused(f"the answer has more than {_shown(limit)}")
        self._limit = limit
        self._body = bytearray()
        self._memory, self._most_memory = 0, max(_LEAST_MEMORY, EXPANSION * limit)
        self._refusal: str | None = None

    def add(self, piece: bytes) -> bool:
        """Keep ``piece``; False if the answer exceeds its bounds, and then nothing more is kept."""
        self._memory += len(piece) + sum(each * piece.count(mark) for mark, each in OBJECTS.items())
        if self._memory > self._most_memory:
            self._refusal = f"the answer would take more than {_shown(self._most_memory)} of memory"
        elif self._refusal is None and len(self._body) + len(piece) > self._limit:
            self._refusal = f"the answer has more than {_shown(self._limit)}"
        if self._refusal is None:
            self._body += piece
        return self._refusal is None

    def whole(self) -> bytes:
        """The body. Raises AnswerRefused if a piece exceeded the bounds."""
        if self._refusal is not None:
            raise AnswerRefused(self._refusal)
        return bytes(self._body)


def _shown(size: int) -> str:
    # imported here, because commands need it only for a refusal, and its module imports Trio
    from spegel_consul.disk.foreign_files import size as shown

    return shown(size)

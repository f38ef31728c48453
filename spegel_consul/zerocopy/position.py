"""The position in a body: one plain object that every step of a transfer reads and moves.

A body passes through a file, a pipe or this process, and may change between them in mid-body. Each step takes its first
offset from the position, never from a variable of its own, so that no byte is sent twice or skipped.

A new rule about the number of bytes that may be taken or sent belongs here.
"""

from __future__ import annotations

from dataclasses import dataclass

from spegel_consul.peers import PeerError


@dataclass(slots=True)
class Position:
    """``taken`` bytes came from sources, and ``sent`` of them were sent to the client: sent <= taken <= total."""

    total: int
    taken: int = 0
    sent: int = 0

    @property
    def left(self) -> int:
        """Number of bytes that are still to be taken from a source."""
        return self.total - self.taken

    @property
    def whole(self) -> bool:
        """Whether the complete body has been sent to the client."""
        return self.sent == self.total

    def took(self, count: int) -> None:
        """Add ``count`` bytes from a source. Raises PeerError if the total is exceeded."""
        if count > self.left:
            raise PeerError("sent more bytes than it promised", broken=True)
        self.taken += count

    def gave(self, count: int) -> None:
        """Add ``count`` bytes that were sent to the client."""
        self.sent += count
        assert self.sent <= self.taken, "more bytes were sent than taken"

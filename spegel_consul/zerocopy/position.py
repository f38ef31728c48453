"""How far a body has come: one plain object that every step of its way reads and moves.

A body passes through a file, a pipe or this process, and may change from one to another half-way. Each step takes the
offset at which it begins from here, never from a variable of its own, so that no byte is sent twice or skipped.

A new rule about what may be taken or sent belongs here.
"""

from __future__ import annotations

from dataclasses import dataclass

from spegel_consul.zerocopy.source import SourceFailed


@dataclass(slots=True)
class Position:
    """``taken`` bytes came from sources, ``sent`` of them reached the client: sent <= taken <= total."""

    total: int
    taken: int = 0
    sent: int = 0

    @property
    def left(self) -> int:
        """How many bytes are still to be taken from a source."""
        return self.total - self.taken

    @property
    def whole(self) -> bool:
        """Whether the client has all of the body."""
        return self.sent == self.total

    def took(self, count: int) -> None:
        """``count`` bytes more came from a source. Raises SourceFailed if these are more than there are."""
        if count > self.left:
            raise SourceFailed("sent more bytes than it promised", broken=True)
        self.taken += count

    def gave(self, count: int) -> None:
        """``count`` bytes more reached the client."""
        self.sent += count
        assert self.sent <= self.taken, "bytes were sent that never came"

"""What people are told about the work on one group: its image, the sources that were left, and how a follow ended.

A follow begins with the first blob that a source sends, and goes on while the keeper names other sources. It ends once:
when the node has all content of the group, when it goes upstream for the rest, or when nothing more is asked for. So
the log has two lines for each group that is followed, and none for each layer.

The end is told when no body comes from a source any more, because only then the number of bytes is known.

Plain object: the caller gives ``now`` in seconds. A rule about the beginning or the end of a follow belongs here; the
lines themselves are logged in :mod:`spegel_consul.registry.mirror.following.follows`.
"""

from __future__ import annotations

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import Provider

COMPLETE = "complete"
TAKEOVER = "takeover"
UPSTREAM = "upstream"
NO_KEEPER = "no keeper"
IDLE = "idle"
MOVED = "moved"


@dataclass(frozen=True, slots=True)
class LeftSource:
    """A source that this node has left. ``why``: a reason of a failure in lower case, or a constant of this module."""

    source: Provider
    why: str


@dataclass(frozen=True, slots=True)
class EndedFollow:
    """A follow that has ended: its last source, the number of sources, bytes, seconds, and a constant as the reason."""

    source: Provider
    sources: int
    received: int
    seconds: float
    reason: str


class GroupHistory:
    """The history of one group at this node, since it began to work on it at ``now``."""

    def __init__(self, now: float) -> None:
        self.began = now
        self.image = ""
        """``registry/repository`` of the first request that named both; "" if none has."""
        self.registry = ""
        self.left: LeftSource | None = None
        """The last source that was left."""
        self.received = 0
        """Bytes that came from sources, of bodies that have ended."""
        self._sources: list[Provider] = []  # of the present follow
        self._before = 0  # bytes of earlier follows
        self._follow_began = self._last = now
        self._reason = ""

    def name(self, registry: str | None, repository: str) -> None:
        """A request names the image."""
        if not self.image and registry is not None:
            self.registry, self.image = registry, f"{registry}/{repository}"

    def followed(self, source: Provider, now: float) -> bool:
        """``source`` sends a blob. Return whether a follow begins with it."""
        begins = not self._sources
        if begins:
            self._follow_began = now
        if begins or source.registry != self._sources[-1].registry:
            self._sources.append(source)
        self._last, self._reason = now, ""
        return begins

    def took(self, count: int, now: float) -> None:
        """A body from a source has ended after ``count`` bytes."""
        self.received += count
        self._last = now

    def leave(self, source: Provider, why: str) -> None:
        """The node leaves ``source``."""
        self.left = LeftSource(source, why)

    def end(self, reason: str) -> None:
        """The present follow ends, if there is one; the first reason counts."""
        if self._sources and not self._reason:
            self._reason = reason

    def take_ended(self) -> EndedFollow | None:
        """Return the follow that has ended, once; the caller waits until no body comes from a source."""
        if not self._reason:
            return None
        seconds = round(self._last - self._follow_began, 1)
        ended = EndedFollow(self._sources[-1], len(self._sources), self.received - self._before, seconds, self._reason)
        self._sources, self._before, self._reason = [], self.received, ""
        return ended

"""The followers of this node's downloads: who is sent what, how many they may be, and which of them don't keep up.

A follower is a peer whose request is answered from a download in progress. It lags by the bytes that the file has and
that were not sent yet. A follower on a narrow link lags more and more, and so does everybody behind it. This node
reports such followers, so that they are given another place in the distribution tree.

A follower that starts late begins far behind and comes closer. It is not reported while it comes closer by
:data:`LAG` bytes a second, because its link is not the problem.

A new rule about the number or the judgement of followers belongs here. How their bytes are sent belongs to
:mod:`spegel_consul.zerocopy.send_growing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spegel_consul.oci.path import ContentRequest, unknown
from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.growth import Growth
from spegel_consul.zerocopy.position import Position

WAIT = 30.0
"""Seconds that a followed request is held until its first byte, while this node's runtime is at work."""

MOST = 64
"""Followed requests at a time; those that wait for their first byte are counted."""

MOST_UNASKED = 32
"""The same, for content that this node's own runtime has not asked for yet. They need no digest that exists, so they
must not take the room of the others."""

LAG = 4 << 20
"""Bytes that a follower may lag behind the file."""

LATE_AFTER = 1.0
"""Seconds after which a follower that lags more, and does not come closer, is behind."""

MOST_BEHIND = 16
"""Peer ids of one report."""


class FollowedSend:
    """One followed request. Plain object: the caller gives ``now`` in seconds."""

    def __init__(self, peer: str, request: ContentRequest, *, asked: bool = True) -> None:
        self.peer = peer
        """The peer id of the follower, as it said itself."""
        self.request = request
        self.asked = asked
        """Whether the node's own runtime has asked for the content; it has when the content is sent."""
        self.behind = False
        """Whether the follower did not keep up when it was looked at last."""
        self._file: GrowingFile | None = None
        self._start = 0
        self._position = Position(0)
        self._compared = 0  # the lag at the time _since, with which later ones are compared
        self._since = 0.0

    def begin(self, file: GrowingFile, start: int, position: Position, now: float) -> None:
        """Note that ``position.total`` bytes of ``file`` are sent now, beginning with the byte ``start``."""
        self.asked = True
        self._file, self._start, self._position = file, start, position
        self._compared, self._since = self.lag, now

    @property
    def sent(self) -> int:
        """Number of bytes that were sent."""
        return self._position.sent

    @property
    def total(self) -> int:
        """Number of bytes that are to be sent; 0 while the request waits for its first byte."""
        return self._position.total

    def size(self) -> int:
        """Return the number of bytes that could have been sent so far; call this on the event loop."""
        if self._file is None:
            return 0
        try:
            size = self._file.size()
        except OSError:  # the file system has lost the file, which the sender finds too
            return self.sent
        return min(max(size - self._start, 0), self.total)

    @property
    def lag(self) -> int:
        """Number of bytes that are there and were not sent."""
        return max(self.size() - self.sent, 0)

    def look(self, now: float) -> None:
        """Judge whether the follower keeps up; for each piece that was sent, and for each report."""
        lag = self.lag
        if lag <= LAG or lag <= self._compared - LAG:
            self.behind, self._compared, self._since = False, lag, now
        elif now - self._since > LATE_AFTER:
            self.behind, self._compared, self._since = True, lag, now


class Followers:
    """The followed requests of this node that are being answered."""

    def __init__(self) -> None:
        self._sends: list[FollowedSend] = []
        self.growth = Growth()
        """The waits of all of them for more bytes."""

    @contextmanager
    def one(self, peer: str, request: ContentRequest, *, asked: bool = True) -> Iterator[FollowedSend]:
        """Count a request of the peer ``peer``. ``asked``: whether the node's own runtime has asked for the content.

        Raises ManifestUnknown or BlobUnknown if there are too many.
        """
        if len(self._sends) >= MOST:
            raise unknown(request, f"{MOST} peers follow downloads of this node already: ask another node")
        if not asked and sum(not each.asked for each in self._sends) >= MOST_UNASKED:
            raise unknown(request, f"{MOST_UNASKED} peers wait for such content of this node already: ask later")
        send = FollowedSend(peer, request, asked=asked)
        self._sends.append(send)
        try:
            yield send
        finally:
            self._sends.remove(send)

    def behind(self, now: float) -> tuple[str, ...]:
        """Return the peer ids of followers that don't keep up, at most :data:`MOST_BEHIND`, the slowest first."""
        for send in self._sends:
            send.look(now)
        late = sorted((send for send in self._sends if send.behind), key=lambda send: send.lag, reverse=True)
        return tuple(dict.fromkeys(send.peer for send in late))[:MOST_BEHIND]

    def waits(self, peer: str, key: str) -> bool:
        """Whether a request of ``peer`` for the content ``key`` waits here for its first byte."""
        return any(send.peer == peer and send.request.key == key and not send.total for send in self._sends)

    def live(self) -> tuple[FollowedSend, ...]:
        """Return the followed requests now, the oldest first."""
        return tuple(self._sends)

    def __len__(self) -> int:
        return len(self._sends)

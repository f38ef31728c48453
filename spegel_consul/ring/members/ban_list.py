"""The ban list: peers that break the protocol too often are refused for a while.

One malformed message ends only its stream, because it may come from a bug or another version.  LIMIT of them within
WINDOW end all connections of the peer.  An identity costs an attacker nothing, so the list is short-lived and bounded;
the limits by address are in ``net/libp2p_host``.
"""

from __future__ import annotations

from spegel_consul.bounded_dict import BoundedDict

LIMIT, WINDOW = 8, 60.0
"""So many protocol errors within so many seconds ban a peer."""

BAN = 60.0
"""Seconds for which a peer is banned."""

_CAPACITY = 1024


class BanList:
    """Counts protocol errors by peer; ``now`` is seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._since: BoundedDict[bytes, tuple[float, int]] = BoundedDict(_CAPACITY)
        self._banned_until: BoundedDict[bytes, float] = BoundedDict(_CAPACITY)

    def note(self, peer: bytes, now: float) -> bool:
        """Count a protocol error of ``peer``. True if the peer is banned from now on."""
        began, count = self._since.pop(peer, (now, 0))
        if now - began > WINDOW:
            began, count = now, 0
        if count + 1 < LIMIT:
            self._since[peer] = began, count + 1
            return False
        self._banned_until[peer] = now + BAN
        return True

    def is_banned(self, peer: bytes, now: float) -> bool:
        """Whether ``peer`` is banned at ``now``."""
        until = self._banned_until.get(peer)
        if until is None:
            return False
        if until <= now:
            del self._banned_until[peer]
            return False
        return True

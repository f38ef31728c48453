# What a peer may do wrong before it is shut out for a while.  One malformed message ends its stream, which may
# be a bug or a version; many within a minute end all that it has here.  An identity costs an attacker
# nothing, so the list is short-lived and bounded, and bounds by address are kept in libp2p_host.py.

"""Peers that break the protocol."""

from __future__ import annotations

from spegel_consul.bounded_dict import BoundedDict

LIMIT, WINDOW = 8, 60.0
"""So many offences within so many seconds shut a peer out."""

SHUT_OUT = 60.0
"""Seconds for which a peer is shut out."""

_CAPACITY = 1024


class BanList:
    """Counts what peers did wrong; ``now`` is seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._since: BoundedDict[bytes, tuple[float, int]] = BoundedDict(_CAPACITY)
        self._until: BoundedDict[bytes, float] = BoundedDict(_CAPACITY)

    def note(self, peer: bytes, now: float) -> bool:
        """``peer`` did something wrong. True if it is shut out from now on."""
        began, count = self._since.pop(peer, (now, 0))
        if now - began > WINDOW:
            began, count = now, 0
        if count + 1 < LIMIT:
            self._since[peer] = began, count + 1
            return False
        self._until[peer] = now + SHUT_OUT
        return True

    def is_shut_out(self, peer: bytes, now: float) -> bool:
        """Whether nothing of ``peer`` is listened to."""
        until = self._until.get(peer)
        if until is None:
            return False
        if until <= now:
            del self._until[peer]
            return False
        return True

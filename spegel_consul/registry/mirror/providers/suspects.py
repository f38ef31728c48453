"""Suspects: peers that together sent a wrong body.

A body that one peer sent from its first byte to its last, and that has the wrong digest, proves that the peer is wrong.
A body that was assembled from several peers proves nothing about any of them, because each may have sent the right
bytes. So these peers are suspects, which changes the order and bars none: for this digest they are asked after all
others, and the next body is taken from one peer alone, which proves something.

A new rule about the conditions or the duration of suspicion belongs here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider

DOUBT = 300.0
"""Seconds for which a digest stays in doubt, unless a right body comes first; as long as a wrong peer is barred."""

_MOST = 1024


class Suspects:
    """Suspects by digest; the latest digests are remembered."""

    def __init__(self) -> None:
        self._suspects: OrderedDict[str, tuple[float, frozenset[Provider]]] = OrderedDict()

    def add(self, digest: Digest, suspects: Iterable[Provider]) -> None:
        """Add the senders of a wrong body as suspects."""
        known = self.of(digest)
        self._suspects[digest] = trio.current_time() + DOUBT, known | frozenset(suspects)
        self._suspects.move_to_end(digest)
        if len(self._suspects) > _MOST:
            self._suspects.popitem(last=False)

    def of(self, digest: str | None) -> frozenset[Provider]:
        """Return the suspects of ``digest``; none if it is not in doubt."""
        if not self._suspects or digest is None:
            return frozenset()
        until, suspects = self._suspects.get(digest, (0.0, frozenset()))
        return suspects if until > trio.current_time() else frozenset()

    def settle(self, digest: Digest) -> frozenset[Provider]:
        """Clear the suspects of a digest, because a right body has come, and return them."""
        suspects = self.of(digest)
        self._suspects.pop(digest, None)
        return suspects

"""Blobs that this node's runtime verifies itself: what follows if it asks for one of them again (``--verify=auto``).

A runtime verifies each blob that it downloads, and keeps it only if the digest is right. So a large blob for the own
runtime need not be hashed here, because a wrong one can't be taken back any more either way. The only thing lost is the
knowledge which peer was wrong. That shows a little later: the runtime asks again for a digest of which it was sent all
bytes, and the store has not had it meanwhile. Then the senders are suspects
(:mod:`spegel_consul.registry.mirror.providers.suspects`), and all that they send is hashed for a while.

They are not barred, because there is an innocent reason too: a pull that failed elsewhere, and the garbage collection
after it. A content that was in the store meanwhile raises no suspicion, because then somebody deleted it.

A new rule about the conclusions from the requests of the own runtime belongs here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers.suspects import Address

ASKED_AGAIN = 600.0
"""Seconds after a complete transfer in which another request for the digest is a sign of wrong bytes."""

HASHED = 3600.0
"""Seconds for which all that a suspect sends is hashed. Longer than a wrong peer is barred, because each image that a
wrong peer sends after this time costs two failed pulls, one that raises suspicion and one that is cut."""

_MOST = 1024


class UnverifiedTransfers:
    """The unhashed transfers to the own runtime. Plain object: the caller gives ``now`` in seconds."""

    def __init__(self) -> None:
        self._sent: BoundedDict[Digest, tuple[float, tuple[Provider, ...]]] = BoundedDict(_MOST)
        self._hashed_until: BoundedDict[Address, float] = BoundedDict(_MOST)

    def sent(self, digest: Digest, senders: Sequence[Provider], now: float) -> None:
        """The runtime was sent all bytes of ``digest``, unhashed, by ``senders``."""
        self._sent[digest] = now, tuple(senders)

    def arrived(self, keys: Collection[str]) -> None:
        """The store has these keys now, so their bytes were right."""
        for digest in [digest for digest in self._sent if digest in keys]:
            del self._sent[digest]

    def asked(self, digest: Digest, now: float) -> tuple[Provider, ...]:
        """The runtime asks for ``digest``. Return the senders of wrong bytes, as it seems; they are hashed from now on.

        A digest of which no transfer is known has none.
        """
        at, senders = self._sent.pop(digest, (-ASKED_AGAIN, ()))
        if now - at >= ASKED_AGAIN:
            return ()
        for sender in senders:
            self._hashed_until[sender.registry] = now + HASHED
        return senders

    def hashes(self, provider: Provider, now: float) -> bool:
        """Whether all that the provider sends is to be hashed."""
        return self._hashed_until.get(provider.registry, now) > now

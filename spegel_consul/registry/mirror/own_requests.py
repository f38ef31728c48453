"""The digests that clients of this machine asked the mirror for: what a download in progress may be shown of.

The store's index applies the filters to complete content only. A download in progress is not in the index, so its
permission comes from the request that caused it: a client of this machine asked the mirror for the digest, under a name
that the filters accept. The planner refuses all other names before the mirror sees them. A request that names no
registry is not noted, because the filters match full names and were not applied to it.

A runtime asks once, at the start of a download. So a download that grows keeps its permission, however long it takes.

A new rule about which downloads may be shown to peers belongs here.
"""

from __future__ import annotations

from collections.abc import Mapping

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.path import ContentRequest

SHOWN_FOR = 600.0
"""Seconds after the last request of an own client, or the last growth of its download, in which it may be shown."""

LOOK_EVERY = SHOWN_FOR / 4
"""Seconds between two looks at the downloads of a runtime."""

_MOST = 8192


class OwnRequests:
    """The time of the last request for each digest. Plain object: the caller gives ``now`` in seconds."""

    def __init__(self) -> None:
        self._asked: BoundedDict[Digest, float] = BoundedDict(_MOST)
        self._sizes: dict[Digest, int] = {}

    def note(self, request: ContentRequest, method: str, client: str, now: float) -> None:
        """Note a request of the client at the address ``client``, "" for a client of this machine."""
        reference = request.reference
        if method == "GET" and not client and reference.digest is not None and reference.registry is not None:
            self._asked.drop_oldest(lambda at: now - at > SHOWN_FOR)
            self._asked[reference.digest] = now

    def asked(self, digest: Digest, now: float) -> bool:
        """Whether a client of this machine asked for ``digest`` in the last :data:`SHOWN_FOR` seconds."""
        at = self._asked.get(digest)
        return at is not None and now - at <= SHOWN_FOR

    def any(self, now: float) -> bool:
        """Whether there is a digest that may be shown."""
        return any(now - at <= SHOWN_FOR for at in self._asked.values())

    def grow(self, sizes: Mapping[Digest, int], now: float) -> None:
        """Note the present ``sizes`` of all downloads, in bytes; those that have grown keep their permission."""
        for digest, size in sizes.items():
            if size > self._sizes.get(digest, size) and self.asked(digest, now):
                self._asked[digest] = now
        self._sizes = dict(sizes)

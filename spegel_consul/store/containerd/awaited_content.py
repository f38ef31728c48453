"""``AwaitedContent``: digests that containerd may have a moment after their download has ended. No I/O, no clock.

The end of a download is seen on the disk, and the namespace knows of the blob when containerd's database has it, some
milliseconds later. The label with the repository follows after that. containerd 1.x sends no event for either, so the
store asks again, a few times, with growing pauses.

A new rule about how long the store waits for a commit belongs here.
"""

from __future__ import annotations

import math

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.oci.digest import Digest

PAUSES = (0.1, 0.3, 1.0, 3.0)
"""Seconds before the second question and the following ones."""

_MOST = 1024


class AwaitedContent:
    """The digests, and when to ask for each of them next."""

    def __init__(self) -> None:
        self._due: BoundedDict[Digest, tuple[float, int]] = BoundedDict(_MOST)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._due

    @property
    def next(self) -> float:
        """When the next question is due; infinity if there is none."""
        return min((due for due, _ in self._due.values()), default=math.inf)

    def add(self, digest: Digest, now: float) -> None:
        """Ask for ``digest`` at once."""
        self._due[digest] = (now, 0)

    def due(self, now: float) -> frozenset[Digest]:
        """Return the digests to ask for."""
        return frozenset(digest for digest, (due, _) in self._due.items() if due <= now)

    def answered(self, digest: Digest, settled: bool, now: float) -> bool:
        """Note an answer about an awaited digest. Whether it is given up, because this was the last question."""
        _, asked = self._due.pop(digest)
        if settled:
            return False
        if asked >= len(PAUSES):
            return True
        self._due[digest] = (now + PAUSES[asked], asked + 1)
        return False

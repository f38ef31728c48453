"""Uploads: the bodies that this node sends to peers, their number, and the refusal of more than it may send.

Peers have other peers to ask, so a request that comes while ``most`` bodies are being sent is refused at once (503),
with the seconds after which there may be room. A refusal costs the peer one exchange, and a body at a crawl would cost
it seconds. The number is told in each answer to a peer, so that most peers ask a less loaded node in the first place.

Never refused are:

* clients that are no peers, such as this node's own runtimes: only peers send the header X-Spegel-Mirrored;
* bodies up to 64 KiB and answers without a body, because they cost as much as the refusal;
* peers that follow a download of this node: the keeper of the download gives each node few followers, and a refusal
  would count as the loss of a source there. They count as bodies.

A new rule about what is counted or refused belongs here, because both paths to an answer ask this module. This object
has no I/O and no clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from spegel_consul.oci.errors import Busy
from spegel_consul.oci.path import FOLLOW_HEADER, MIRRORED_HEADER
from spegel_consul.registry.plan import Elsewhere, Growing, Own
from spegel_consul.store.blob_files import SMALL
from spegel_consul.zerocopy.pacing import Pace

SHARE = 2 << 20
"""Bytes per second that each body should get. A peer takes the rest from another node if it gets less, by default."""

_SHORTEST, _LONGEST = 0.25, 5.0  # seconds of a hint
_WEIGHT = 0.2  # of the last body in the mean duration


class Upload(Enum):
    """What an answer is to this node's uploads."""

    NONE = 0
    """The client is no peer."""
    SMALL = 1
    """For a peer, without a body or with a small one."""
    FOLLOWED = 2
    """A body for a peer that follows a download: counted, but not refused."""
    BODY = 3

    @property
    def counted(self) -> bool:
        return self is Upload.BODY or self is Upload.FOLLOWED


def upload_of(method: str, headers: Mapping[bytes, bytes], plan: Own | Elsewhere | Growing) -> Upload:
    """Return the kind of an answer by ``plan`` to a request with ``method`` and ``headers``."""
    if headers.get(MIRRORED_HEADER) != b"true":
        return Upload.NONE
    if isinstance(plan, Growing):
        return Upload.FOLLOWED
    if not isinstance(plan, Own) or method != "GET":
        return Upload.SMALL
    if (sum(span.length for span in plan.spans) if plan.spans else plan.content.size) <= SMALL:
        return Upload.SMALL
    return Upload.FOLLOWED if FOLLOW_HEADER in headers else Upload.BODY


class Uploads:
    """The uploads of one node.

    ``rate``: bytes per second of all of them together; ``most``: their number. None is for any number, but with a rate
    there are at most as many as get :data:`SHARE` each.
    """

    def __init__(self, most: int | None = None, rate: int | None = None) -> None:
        self.pace = Pace(rate) if rate is not None else None
        """The limit that bodies for peers are counted against."""
        self.most = most if most is not None or rate is None else max(1, rate // SHARE)
        self.streams = 0
        """Number of bodies that are being sent to peers now."""
        self.refused = 0
        """Number of requests that were refused so far."""
        self._lasts = 1.0  # seconds, the mean of the last bodies

    def to_json(self) -> dict[str, int | None]:
        """The uploads for the API; ``most`` and ``rate``, in bytes per second, are None without a limit."""
        rate = self.pace.rate if self.pace is not None else None
        return {"streams": self.streams, "most": self.most, "refused": self.refused, "rate": rate}

    def pace_of(self, upload: Upload) -> Pace | None:
        """Return the limit that the bytes of an answer are counted against, None for none."""
        return self.pace if upload is not Upload.NONE else None

    def refuses(self, upload: Upload) -> bool:
        """Whether :meth:`enter` would raise Busy now."""
        return self.most is not None and self.streams >= self.most and upload is Upload.BODY

    def enter(self, upload: Upload) -> None:
        """Count a body that begins. Raises Busy if it is refused."""
        if self.most is not None and self.refuses(upload):
            self.refused += 1
            hint = min(max(self._lasts / self.most, _SHORTEST), _LONGEST)
            raise Busy(f"this node sends {self.streams} bodies to peers, as many as it may: ask another peer", hint)
        self.streams += 1

    def leave(self, lasted: float) -> None:
        """Count the end of a body that was sent for ``lasted`` seconds."""
        self.streams -= 1
        self._lasts += (lasted - self._lasts) * _WEIGHT

    @contextmanager
    def one(self, upload: Upload) -> Iterator[None]:
        """Count the body that the context sends, if it is one that counts. Raises Busy."""
        if not upload.counted:
            yield
            return
        self.enter(upload)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.leave(time.perf_counter() - began)

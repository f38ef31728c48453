"""The result of a request's bytes, which the fast path remembers while the store does not change.

A new fact belongs here if it follows from the bytes of a request and the version of the store.
"""

from __future__ import annotations

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.metrics.histogram import HistogramCounts
from spegel_consul.oci.reference import Reference
from spegel_consul.registry.mirror.trace import TraceHeaders
from spegel_consul.registry.plan import Elsewhere, Growing, Own
from spegel_consul.registry.uploads import Upload


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """The result of a request while the store had ``version``; ``head`` is the answer's head up to its date.

    ``tag``: the own tag that is sent, whose age belongs to the rest of the head. ``upload``: what the answer is to the
    limits of a node.
    """

    version: int
    method: str
    plan: Own | Elsewhere | Growing
    head: bytes = b""
    at_once: bool = False
    duration: HistogramCounts | None = None
    length: HistogramCounts | None = None
    trace_headers: TraceHeaders = ()
    tag: Reference | None = None
    upload: Upload = Upload.NONE

    def count(self, sent: int) -> None:
        """Observe the size of an answer: ``sent`` bytes of content."""
        if self.length is not None:
            self.length.observe(sent)

"""Several ranges of a blob from peers, for an answer of several parts.

Each range is a request of its own to a peer. So each answer is validated like any other, a range whose peer fails is
completed by another peer, frames of peers need no parser, and peers that refuse several ranges (Go's Spegel) can serve
them too. The cost is a round trip for each range, over idle connections.

A new rule belongs here if it decides which ranges are requested from peers, and in which order. The frame of the
answer is in :mod:`spegel_consul.registry.mirror.body.multipart`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.errors import OCIError, RangeInvalid
from spegel_consul.oci.path import ContentRequest
from spegel_consul.oci.ranges import ByteRange, Ranges
from spegel_consul.registry.mirror.body.multipart import Multipart
from spegel_consul.registry.mirror.body.transfer import Transfer
from spegel_consul.registry.mirror.fetch import TransferCut
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.trace import Trace
from spegel_consul.registry.mirror.validate_head import Head


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an answer: ``before``, the bytes of ``transfer``, and ``after``.

    ``head`` and ``multipart`` are those of the answer. ``multipart`` is None if the content has only one of the ranges.
    """

    transfer: Transfer
    head: Head
    multipart: Multipart | None
    first: bool
    before: bytes = b""
    after: bytes = b""


async def send_parts(
    mirror: Mirror, request: ContentRequest, wanted: Ranges, trace: Trace, send: Callable[[Part], Awaitable[None]]
) -> None:
    """Fetch several ranges of a blob from peers, and pass each to ``send``, in order.

    The first answer names the size of the content, from which the satisfiable ranges follow. The other answers must
    agree with it.

    Raises the OCIError to answer with before the first ``send``, TransferCut after it, and exceptions of ``send``.
    """
    with mirror.counted(request):
        async with AsyncExitStack() as stack:
            transfer = await _first(stack, mirror, request, wanted, trace)
            head, times = transfer.head, (trace.asked, trace.connected, trace.first_byte)
            parts = _Parts(head, wanted.within(head.size))
            done = 0
            if (head.start, head.stop) == (parts.spans[0].start, parts.spans[0].stop):
                await send(parts.part(0, transfer))
                done = 1
        for place in range(done, len(parts.spans)):
            try:
                async with mirror.part(request, parts.spans[place].header, trace, parts.head(place)) as transfer:
                    await send(parts.part(place, transfer))
            except OCIError as exc:
                if not place:
                    raise
                raise TransferCut(f"part {place + 1} of {len(parts.spans)}: {exc.message}") from None
        trace.asked, trace.connected, trace.first_byte = times
        trace.progress = None
        trace.size = trace.bytes = sum(span.length for span in parts.spans)


class _Parts:
    """The parts ``spans`` of the content that ``head`` describes."""

    def __init__(self, head: Head, spans: tuple[ByteRange, ...]) -> None:
        self._head = head
        self.spans = spans
        self._multipart = Multipart(head.media_type, spans) if len(spans) > 1 else None

    def head(self, place: int) -> Head:
        """Return the head that a peer's answer for the span at index ``place`` must have."""
        span = self.spans[place]
        return replace(self._head, start=span.start, stop=span.stop, partial=True)

    def part(self, place: int, transfer: Transfer) -> Part:
        if self._multipart is None:
            return Part(transfer, self.head(0), None, first=True)
        after = self._multipart.end if place == len(self.spans) - 1 else b""
        return Part(transfer, self.head(0), self._multipart, not place, self._multipart.before(place), after)


async def _first(
    stack: AsyncExitStack, mirror: Mirror, request: ContentRequest, wanted: Ranges, trace: Trace
) -> Transfer:
    """Open the transfer of a satisfiable range, if possible the one to send first. Raises RangeInvalid if all of the
    ranges lie outside of the content."""
    refused: RangeInvalid | None = None
    for probe in wanted.probes:
        try:
            return await stack.enter_async_context(mirror.part(request, probe.header, trace))
        except RangeInvalid as exc:
            refused = exc
    assert refused is not None
    raise refused

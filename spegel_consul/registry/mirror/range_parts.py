"""Several ranges of a blob from peers, for an answer of several parts.

Peers are asked for one range at a time. So each answer is judged like any other, a range whose peer dies goes on at
another one, no peer's frame is read, and peers that refuse several ranges (Go's Spegel) are good for them too. It costs
a round trip for each range, over connections that are kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from spegel_consul.oci.errors import OCIError, RangeInvalid
from spegel_consul.oci.path import ContentRequest
from spegel_consul.oci.ranges import ByteRange, Ranges
from spegel_consul.registry.mirror.body.multipart import Multipart
from spegel_consul.registry.mirror.body.transfer import Transfer
from spegel_consul.registry.mirror.fetch import TransferCut
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.trace import Trace
from spegel_consul.registry.mirror.validate import Head


@dataclass(frozen=True, slots=True)
class Part:
    """A step of an answer: ``before``, the bytes of ``transfer``, and ``after``.

    ``head`` and ``multipart`` are those of the answer. It has no frame if one range is all that there is to send.
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
    """Have several ranges of a blob from peers, and give each to ``send``, in order.

    The first answer tells the size, and so what there is of the ranges; the others have to agree with it.

    Raises the OCIError to answer with, before the first ``send``; TransferCut after it, and what ``send`` raises.
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
    """The parts of the content that ``head`` is about."""

    def __init__(self, head: Head, spans: tuple[ByteRange, ...]) -> None:
        self._head = head
        self.spans = spans
        self._multipart = Multipart(head.media_type, spans) if len(spans) > 1 else None

    def head(self, place: int) -> Head:
        """The head that a peer's answer must have."""
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
    """One of the ranges, the one that is to be sent first if it exists. Raises RangeInvalid if none exists."""
    refused: RangeInvalid | None = None
    for probe in wanted.probes:
        try:
            return await stack.enter_async_context(mirror.part(request, probe.header, trace))
        except RangeInvalid as exc:
            refused = exc
    assert refused is not None
    raise refused

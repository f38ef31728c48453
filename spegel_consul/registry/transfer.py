"""The body behind a head that was accepted, from one peer after another."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

import structlog
import trio

from spegel_consul.oci.path import ContentRequest
from spegel_consul.registry.chase import Answer, Chase, TransferCut
from spegel_consul.registry.peer import PeerError, PeerResponse
from spegel_consul.registry.trace import Trace
from spegel_consul.ring import Provider
from spegel_consul.server.relay import Relay, SourceFailed
from spegel_consul.server.sending import send_bytes, send_head

if TYPE_CHECKING:
    from hashlib import _Hash

    from spegel_consul.registry.mirror import Mirror

log = structlog.get_logger(__name__)


class Transfer:
    """A head that was accepted, and the body behind it. ``chase`` finds another peer when this one fails."""

    def __init__(
        self, mirror: Mirror, chase: Chase | None, request: ContentRequest, answer: Answer, trace: Trace
    ) -> None:
        self._mirror = mirror
        self._trace = trace
        self._chase = chase
        self._request = request
        self._body = answer.body
        self._before: list[Provider] = []  # who sent the beginning of the body
        self.head = answer.head
        self.provider = answer.provider
        trace.asked, trace.connected, trace.first_byte = answer.times
        trace.peer = self.served_by
        if isinstance(answer.body, PeerResponse):
            trace.size = answer.head.stop - answer.head.start
        else:
            trace.size = trace.bytes = len(answer.body)

    @property
    def served_by(self) -> str:
        """``host:port`` of the registry that sends the bytes, or began to."""
        host, port = self.provider.registry
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def chunks(self, later: AsyncExitStack | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes of the body, verified. Raises TransferCut when they can't be completed or are wrong.

        A transfer that began without a race opens one in ``later`` if it needs it.
        """
        if isinstance(self._body, bytes):
            yield self._body
            return
        head = self.head
        hasher = self._hasher()
        reached = head.start
        held = b""
        body = self._body
        while True:
            try:
                async with aclosing(body.chunks()) as pieces:
                    async for piece in pieces:
                        if reached + len(piece) > head.stop:
                            raise PeerError("sent more bytes than it promised")
                        reached += len(piece)
                        self._trace.bytes = reached - head.start
                        if hasher is not None:
                            hasher.update(piece)
                        if held:
                            yield held
                        held = piece
                break
            except PeerError as exc:
                if reached == head.stop:
                    break
                body = await self._go_on(body, reached, exc, later)
        self._check(hasher)
        yield held

    async def relay(self, sink: trio.socket.SocketType, head: bytes) -> None:
        """Send ``head`` and the body on ``sink``, verified, without the bytes passing through this process if they can.

        Raises TransferCut, and OSError, trio.TooSlowError or trio.ClosedResourceError if the sink fails.
        """
        if isinstance(self._body, bytes):
            await send_bytes(sink, head + self._body)
            return
        hasher, relay = self._hasher(), None
        if not self._mirror.client.encrypts:
            self._trace.progress = relay = await Relay.start(sink, self.head.stop - self.head.start, hasher)
        async with AsyncExitStack() as later:
            if relay is not None:
                later.callback(relay.close)
                await send_head(sink, head)
                await self._splice(relay, self._body, hasher, later)
            else:
                await send_head(sink, head)
                async with aclosing(self.chunks(later)) as pieces:
                    async for piece in pieces:
                        await send_bytes(sink, piece)

    async def _splice(self, relay: Relay, body: PeerResponse, hasher: _Hash | None, later: AsyncExitStack) -> None:
        while True:
            try:
                await relay.put(body.buffered())
                await relay.pull(body.socket, self._mirror.client.limits.stall)
            except SourceFailed as exc:
                body = await self._go_on(body, self.head.stop - relay.left, exc, later)
            else:
                body.taken()
                break
        await relay.hashed()
        self._check(hasher)
        await relay.release()

    def _hasher(self) -> _Hash | None:
        """What verifies the body; a part of the content can't be verified."""
        whole = self.head.start == 0 and self.head.stop == self.head.size
        return self.head.digest.hasher() if whole and self._mirror.settings.verify else None

    async def _go_on(
        self, body: PeerResponse, reached: int, why: PeerError | SourceFailed, later: AsyncExitStack | None
    ) -> PeerResponse:
        """Another peer's answer for the bytes from ``reached`` on. Raises TransferCut."""
        mirror, head = self._mirror, self.head
        log.info("peer failed in mid-body", digest=head.digest, at=reached, size=head.size, error=str(why))
        body.discard()
        mirror.penalties.failed(self.provider, hung=why.hung)
        mirror.recent.drop(head.digest, self.provider)
        if self._chase is None:
            assert later is not None
            self._chase = await later.enter_async_context(mirror.chase(self._request, "GET", self._trace))
            self._chase.exclude(self.provider)
        if reached > head.start:
            self._before.append(self.provider)
        self._body, self.provider = resumed = await self._chase.resume(head, reached)
        self._trace.resumed += 1
        self._trace.peer = self.served_by
        return resumed[0]

    def _check(self, hasher: _Hash | None) -> None:
        if hasher is not None and hasher.hexdigest() != self.head.digest.encoded:
            # whoever sent a part and failed is suspected first: to blame the last one would let a peer that sends
            # junk and leaves turn us against the honest ones
            for provider in self._before or [self.provider]:
                self._mirror.on_mismatch(provider, self.head.digest)
            raise TransferCut(f"the bytes from {self.provider.registry[0]} do not have digest {self.head.digest}")

    def close(self) -> None:
        """Give up what was not read."""
        if isinstance(self._body, PeerResponse):
            self._body.discard()

# A body goes to the client in one of two ways.
#
# What is not too large is held: spooled whole, and verified, before the client sees a byte.  If it is wrong, or can't
# be had to its end, somebody else is asked, and nothing is lost but time.
#
# The rest is streamed as it comes, hashed on the way, and its last piece is withheld until the digest of all is right.
# If it is not, the transfer is cut.  The runtime keeps the wrong beginning, fetches the rest from upstream and fails
# that pull, which can't be prevented any more; but the peer is barred, so that the next pull is right.
#
# A body that was to be held and takes too long, or for which there is no room, is streamed from then on.

"""The body behind a head that was accepted, from one peer after another."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import TYPE_CHECKING

import structlog
import trio

from spegel_consul.oci.path import ContentRequest
from spegel_consul.registry.chase import Answer, Chase, TransferCut
from spegel_consul.registry.peer import PeerError, PeerResponse
from spegel_consul.registry.plan import unknown
from spegel_consul.registry.trace import Trace
from spegel_consul.ring import Provider
from spegel_consul.server.relay import Relay
from spegel_consul.server.sending import send_bytes, send_file, send_head
from spegel_consul.server.source import Pace, SourceFailed, SourceSlow
from spegel_consul.server.spool import Spool

if TYPE_CHECKING:
    from hashlib import _Hash

    from spegel_consul.registry.mirror import Mirror

log = structlog.get_logger(__name__)


class Transfer:
    """A head that was accepted, and the body behind it; a context that gives up what was not read.

    ``chase`` finds another peer when this one fails; a transfer that began without a race opens one if it needs it.
    """

    def __init__(
        self, mirror: Mirror, chase: Chase | None, request: ContentRequest, answer: Answer, trace: Trace
    ) -> None:
        self._mirror = mirror
        self._trace = trace
        self._chase = chase
        self._later = AsyncExitStack()
        self._request = request
        self._left: list[Provider] = []  # who failed half-way
        self._spool: Spool | None = None
        self._pace = Pace(mirror.client.limits.stall, mirror.client.limits.rate)
        self._begin(answer)

    def _begin(self, answer: Answer) -> None:
        head, trace = answer.head, self._trace
        self.head = head
        self.provider = answer.provider
        self._body = answer.body
        self._before: list[Provider] = []  # who sent the beginning of the body
        self._hasher: _Hash | None = None
        self._pace.begin(head.stop - head.start)
        # a part of the content can't be verified
        if self._mirror.settings.verify and head.start == 0 and head.stop == head.size:
            self._hasher = head.digest.hasher()
        trace.asked, trace.connected, trace.first_byte = answer.times
        trace.peer = self.served_by
        if isinstance(answer.body, PeerResponse):
            trace.size = head.stop - head.start
        else:
            trace.size = trace.bytes = len(answer.body)

    async def __aenter__(self) -> Transfer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        if isinstance(self._body, PeerResponse):
            self._body.discard()
        self._close_spool()
        return await self._later.__aexit__(kind, exc, tb)

    @property
    def served_by(self) -> str:
        """``host:port`` of the registry that sends the bytes, or began to."""
        host, port = self.provider.registry
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def hold(self, glance: Callable[[], None] = lambda: None) -> None:
        """Take the whole body and verify it, if it is one to be held. To be called before the head is sent.

        Raises BlobUnknown if nobody sends the right bytes, and what ``glance`` raises if nobody waits for them.
        """
        if not self._is_to_be_held():
            return
        until = trio.current_time() + self._mirror.settings.hold
        result = ""
        try:
            while not (result := await self._take(until, glance)):
                await self._begin_again()
                if not self._is_to_be_held():
                    result = "verified" if isinstance(self._body, bytes) else "late"
                    break
        except trio.TooSlowError:
            raise unknown(self._request, "it could not be stored to be verified") from None
        finally:
            self._mirror.held(result or "failed")

    def _is_to_be_held(self) -> bool:
        return isinstance(self._body, PeerResponse) and self._hasher is not None and self._mirror.holds(self.head)

    async def _take(self, until: float, glance: Callable[[], None]) -> str:
        """Spool the body; what became of that, or "" if the right bytes did not come, of which nothing is left then."""
        head = self.head
        self._hasher = hasher = head.digest.hasher()
        self._trace.progress = self._spool = spool = Spool(self._mirror.room, head.size, hasher, until, glance)
        if not await spool.start():
            self._close_spool()
            return "busy"
        try:
            await self._fill(spool)
        except TransferCut as exc:
            log.debug("begun again", digest=head.digest, error=str(exc))
            self._close_spool()
            return ""
        await spool.settle()
        if spool.full:
            return "full"
        if spool.left:
            return "late"
        if hasher.hexdigest() == head.digest.encoded:
            self._trace.verified = time.perf_counter()
            return "verified"
        self._blame()
        self._close_spool()
        return ""

    async def _begin_again(self) -> None:
        """Have all of it anew, while the client has seen nothing: whoever lied may have lied about the size too.

        Raises BlobUnknown.
        """
        if isinstance(self._body, PeerResponse):
            self._body.discard()
        chase = await self._later.enter_async_context(self._mirror.chase(self._request, "GET", self._trace))
        for provider in self._left:
            chase.exclude(provider)
        self._chase, self._trace.progress = chase, None
        self._begin(await chase.first(None))
        self._trace.resumed += 1

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the body, verified. Raises TransferCut when they can't be completed or are wrong."""
        if isinstance(self._body, bytes):
            yield self._body
            return
        head, spool, reached = self.head, self._spool, self.head.start
        if spool is not None:
            while piece := await spool.read(reached):
                reached += len(piece)
                yield piece
            if reached == head.stop:
                return
            self._trace.progress = None
        held = b""
        while True:
            try:
                async with aclosing(self._body.chunks(self._pace)) as pieces:
                    async for piece in pieces:
                        if reached + len(piece) > head.stop:
                            raise PeerError("sent more bytes than it promised", broken=True)
                        reached += len(piece)
                        self._trace.bytes = reached - head.start
                        if self._hasher is not None:
                            self._hasher.update(piece)
                        if held:
                            yield held
                        held = piece
                break
            except SourceSlow as exc:
                await self._prefer_another(reached, exc)
            except (PeerError, SourceFailed) as exc:
                if reached == head.stop:
                    break
                await self._go_on(reached, exc)
        self._check()
        yield held

    async def relay(self, sink: trio.socket.SocketType, head: bytes) -> None:
        """Send ``head`` and the body on ``sink``, verified, without the bytes passing through this process if they can.

        Raises TransferCut, and OSError, trio.TooSlowError or trio.ClosedResourceError if the sink fails.
        """
        if isinstance(self._body, bytes):
            await send_bytes(sink, head + self._body)
            return
        spool, left = self._spool, self.head.stop - self.head.start
        if spool is not None:
            await send_file(sink, head, spool.fd, 0, spool.stored, spool.count)
            await send_bytes(sink, spool.rest)
            head, left = b"", spool.left
            if not left:
                return
        relay = None
        if not self._mirror.client.encrypts:
            self._trace.progress = relay = await Relay.start(sink, left, self._hasher)
        if relay is None:
            await send_head(sink, head)
            async with aclosing(self.chunks()) as pieces:
                async for piece in pieces:
                    await send_bytes(sink, piece)
            return
        try:
            await send_head(sink, head)
            await self._fill(relay)
            await relay.hashed()
            self._check()
            await relay.release()
        finally:
            relay.close()

    async def _fill(self, into: Relay | Spool) -> None:
        """Carry the body, from one peer after another, to its end or until ``into`` takes no more."""
        while True:
            assert isinstance(self._body, PeerResponse)
            body = self._body
            try:
                if self._mirror.client.encrypts:
                    async with aclosing(body.chunks(self._pace)) as pieces:
                        async for piece in pieces:
                            await into.put(piece)
                            if into.left and into.ended:
                                return
                else:
                    await into.put(body.buffered())
                    await into.pull(body.socket, self._pace)
                    if not into.left:
                        body.taken()
            except SourceSlow as exc:
                await self._prefer_another(self.head.stop - into.left, exc)
            except (PeerError, SourceFailed) as exc:
                await self._go_on(self.head.stop - into.left, exc)
            else:
                return

    async def _go_on(self, reached: int, why: PeerError | SourceFailed) -> None:
        """Have the bytes from ``reached`` on from another peer. Raises TransferCut."""
        mirror, head = self._mirror, self.head
        log.info("peer failed in mid-body", digest=head.digest, at=reached, size=head.size, error=str(why))
        mirror.penalties.failed(self.provider, hung=why.hung, broken=why.broken)
        mirror.recent.drop(head.digest, self.provider)
        self._left.append(self.provider)
        assert isinstance(self._body, PeerResponse)
        self._body.discard()
        await self._change(reached, picky=False)

    async def _prefer_another(self, reached: int, why: SourceSlow) -> None:
        """Have the bytes from ``reached`` on from a peer that is not slow, if there is one; else from the same."""
        slow, body = self.provider, self._body
        assert isinstance(body, PeerResponse)
        log.info("peer is slow", digest=self.head.digest, at=reached, registry=slow.registry[0], rate=str(why))
        self._mirror.penalties.slow(slow)
        try:
            # what it sends meanwhile waits in its socket
            await self._change(reached, picky=True)
        except TransferCut as exc:
            log.debug("no other peer", digest=self.head.digest, error=str(exc))
            return
        body.discard()
        assert self._chase is not None
        self._chase.again(slow)

    async def _change(self, reached: int, *, picky: bool) -> None:
        """Go on with another peer at byte ``reached``. Raises TransferCut; then nothing has changed."""
        if self._chase is None:
            self._chase = await self._later.enter_async_context(self._mirror.chase(self._request, "GET", self._trace))
            self._chase.exclude(self.provider)
        before = self.provider
        self._body, self.provider = await self._chase.resume(self.head, reached, picky=picky)
        if reached > self.head.start:
            self._before.append(before)
        self._pace.begin(self.head.stop - reached)
        self._trace.resumed += 1
        self._trace.peer = self.served_by

    def _check(self) -> None:
        if self._hasher is not None and self._hasher.hexdigest() != self.head.digest.encoded:
            self._blame()
            raise TransferCut(f"the bytes from {self.provider.registry[0]} do not have digest {self.head.digest}")

    def _blame(self) -> None:
        # whoever sent a part and failed is suspected first: to blame the last one would let a peer that sends
        # junk and leaves turn us against the honest ones
        for provider in self._before or [self.provider]:
            self._mirror.on_mismatch(provider, self.head.digest)
        self._before = []

    def _close_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None

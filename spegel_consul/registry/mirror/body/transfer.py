"""The body behind a head that was accepted, from one or several peers to one client.

Bodies up to --verify-first are held: they are written to a spool file and verified completely before the first byte is
sent. If the bytes are wrong, or no peer completes the body, another peer is asked, and only time is lost. All clients
that want the same digest share one such fetch and one file (:mod:`spegel_consul.registry.mirror.body.held_bodies`).

Larger bodies are streamed and hashed on the way, and the last piece is withheld until the digest of the whole body is
verified. If the digest is wrong, the connection is cut. Then the runtime keeps the wrong beginning, fetches the rest
from upstream, and that pull fails, which can't be prevented any more. A body that should be held is streamed too, from
the point reached, if holding takes too long or the disk space is not enough.

Both cases have one order of sending, in :meth:`Transfer.send`: the bytes in memory, the bytes in the file, the bytes
that are still to come. A :class:`Position` counts the bytes, and an incomplete body is cut.

Blame: a peer is certainly wrong, and barred, only if it alone sent a wrong body from its first byte to its last. Peers
whose bytes were mixed are suspects at most (:mod:`spegel_consul.registry.mirror.providers.suspects`). A held body that
was mixed and is wrong is begun anew, and from then on taken from one peer alone. So a peer that fails in mid-body uses
up one of a bounded number of beginnings, and can't add to a mixture.

A new rule belongs here if it decides whether bytes are held, sent or blamed. Rules for the choice of the next peer
belong to :mod:`spegel_consul.registry.mirror.body.supply`.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import structlog
import trio

from spegel_consul.http.peer_client import PeerResponse
from spegel_consul.oci.errors import OCIError
from spegel_consul.oci.path import ContentRequest, unknown
from spegel_consul.registry.mirror.body.supply import Supply, served_by
from spegel_consul.registry.mirror.fetch import Fetch, TransferCut
from spegel_consul.registry.mirror.held_bodies import Feed, HeldBody
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers, image_of
from spegel_consul.registry.mirror.questions.peer_answer import Answer
from spegel_consul.registry.mirror.trace import Trace
from spegel_consul.ring.dht.claim_reports import Why
from spegel_consul.zerocopy.outlet import Outlet
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.relay import Passage
from spegel_consul.zerocopy.send import Truncated
from spegel_consul.zerocopy.small_spool import SmallSpool, open_spool
from spegel_consul.zerocopy.source import Throughput
from spegel_consul.zerocopy.spool import Spool

if TYPE_CHECKING:
    from hashlib import _Hash

log = structlog.get_logger(__name__)


class Transfer:
    """A head that was accepted, and the body behind it; a context that discards unread bytes at its end.

    ``answer`` is a peer's answer, or the held body of the digest that another client has begun. ``fetch`` finds another
    peer if this one fails; a transfer without a fetch opens one when it needs it.
    """

    def __init__(
        self, peers: MirrorPeers, fetch: Fetch | None, request: ContentRequest, answer: Answer | HeldBody, trace: Trace
    ) -> None:
        self._peers = peers
        self._trace = trace
        self._resources = AsyncExitStack()
        self._supply = Supply(peers, request, trace, fetch, self._resources)
        self._request = request
        self._feed: Feed | None = None
        self._holding: HeldBody | None = None
        self._spool: Spool | SmallSpool | None = None
        self._content: bytes | None = None
        self._hasher: _Hash | None = None
        self._position = Position(0)
        self.head, self.provider = answer.head, answer.provider
        if isinstance(answer, HeldBody):
            self._join(answer)
        elif isinstance(answer.body, bytes):
            self._is_known(answer.body)
            if answer.follow is None:
                peers.recent.add(image_of(request), answer.provider)
        else:
            self._feed = self._begun(answer)
            self._position = self._feed.position
            # only complete content is hashed, because a part of it has no digest
            if self._is_all() and peers.hashes(answer.head, answer.provider, trace.client):
                self._hasher = answer.head.digest.hasher()
        if isinstance(answer, Answer):
            trace.asked, trace.connected, trace.first_byte = answer.times
        trace.peer, trace.tag_age = self.served_by, answer.head.tag_age
        trace.size = self._position.total or answer.head.stop - answer.head.start
        if self._content is not None:
            trace.size = trace.bytes = len(self._content)
        trace.progress = self

    def _begun(self, answer: Answer) -> Feed:
        head, limits = answer.head, self._peers.client.limits
        assert isinstance(answer.body, PeerResponse)
        position = Position(head.stop - head.start)
        throughput = Throughput(limits.stall, limits.rate, self._peers.downloads)
        feed = Feed(head, answer.provider, answer.body, position, throughput, follow=answer.follow, grows=answer.grows)
        feed.begin()
        return feed

    def _mismatched(self, feed: Feed) -> None:
        """Blame the senders of wrong bytes, and report a source that sent all of them."""
        self._peers.mismatched(feed.head.digest, feed.senders, feed.passed_on)
        if feed.follow is not None and len(feed.senders) == 1:
            feed.follow.lost(Why.WRONG)

    def _is_known(self, content: bytes) -> None:
        self._content = content
        self._position = Position(len(content), len(content))

    def _is_all(self) -> bool:
        return self.head.start == 0 and self.head.stop == self.head.size

    async def __aenter__(self) -> Transfer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        if self._feed is not None:
            self._feed.discard()
        if self._holding is not None:
            self._leave(self._holding)
        return await self._resources.__aexit__(kind, exc, tb)

    @property
    def served_by(self) -> str:
        """``host:port`` of the registry that sends the bytes, or that began to send them."""
        return served_by(self.provider)

    @property
    def content(self) -> bytes | None:
        """The body if it is complete and verified in memory, as that of a manifest is."""
        return self._content

    @property
    def left(self) -> int:
        """Number of bytes that are still to come from peers."""
        holding = self._holding
        if holding is not None and holding.feed is not None and not holding.result:
            return holding.feed.position.left
        return self._position.left

    @property
    def sent(self) -> int:
        """Number of bytes that have been sent to the client."""
        return self._position.sent

    # Holding

    async def hold(self) -> None:
        """Spool and verify the whole body, if it is to be held. Call this before the head is sent.

        The body takes spool space of the share of the trace's client. Raises BlobUnknown if no peer sends the right
        bytes.
        """
        holding = self._holding
        if holding is None and await self._is_to_be_held():
            holding = self._peers.held_bodies.get(self.head.digest)
            if holding is None:
                holding = self._begin_to_hold()
            elif self._feed is not None:
                self._feed.discard()
                self._supply.forget()
            self._feed = None
            self._join(holding)
        if holding is None:
            return
        async with holding.lock:
            if not holding.result:
                await self._drive(holding)
        await self._adopt(holding)

    async def _is_to_be_held(self) -> bool:
        return self._feed is not None and self._hasher is not None and await self._peers.is_to_be_held(self.head)

    def _begin_to_hold(self) -> HeldBody:
        until = trio.current_time() + self._peers.settings.hold
        alone = bool(self._peers.suspects.of(self.head.digest))
        holding = HeldBody(self.head, self.provider, self._feed, until, alone)
        self._peers.held_bodies.begin(holding)
        return holding

    def _join(self, holding: HeldBody) -> None:
        self._holding = holding
        self._peers.held_bodies.enter(holding, self, self._trace.client)

    def _leave(self, holding: HeldBody) -> None:
        self._peers.held_bodies.leave(holding, self)
        if not holding.users and not holding.result:
            self._end(holding, "failed")

    def _end(self, holding: HeldBody, result: str) -> None:
        self._peers.held_bodies.end(holding, result)
        self._peers.held(result)

    async def _drive(self, holding: HeldBody) -> None:
        """Hold the body, from the point reached, until it has a result. May be cancelled at any point."""
        try:
            while not holding.result:
                if holding.feed is None:
                    await self._begin_anew(holding)
                else:
                    await self._take(holding)
        except trio.TooSlowError:
            self._end(holding, "failed")
            raise unknown(self._request, "it could not be stored to be verified") from None
        except OCIError:
            self._end(holding, "failed")
            raise

    async def _take(self, holding: HeldBody) -> None:
        """Spool the body. Set its result, or drop its bytes if they are wrong or incomplete."""
        feed, spool = holding.feed, holding.spool
        assert feed is not None
        if spool is None:
            holding.hasher = feed.head.digest.hasher()
            try:
                space = self._peers.spool_space
                spool = open_spool(space, feed.position, holding.hasher, holding.until, holding.payer)
            except OSError:  # the limit of open files is reached
                self._end(holding, "busy")
                return
            holding.spool = spool
        if not await spool.start():
            spool.close()
            holding.spool = None
            self._end(holding, "busy")
            return
        try:
            await self._supply.fill(feed, spool, alone=holding.alone)
        except TransferCut as exc:
            log.debug("begun again", digest=feed.head.digest, error=str(exc))
            holding.failed += self._supply.failed
            holding.anew()
            return
        if not await spool.settle():
            raise trio.TooSlowError
        assert holding.hasher is not None
        if spool.left:
            self._end(holding, "full" if spool.full else "late")
        elif holding.hasher.hexdigest() == feed.head.digest.encoded:
            holding.provider = feed.provider
            if feed.provider.registry not in feed.passed_on:  # a source that still downloads has no other content yet
                self._peers.recent.add(image_of(self._request), feed.provider)
            feed.end_follow()
            self._peers.verified(feed.head.digest, feed.senders)
            self._end(holding, "verified")
        else:
            if len(feed.senders) > 1:
                # peers that failed in mid-body are asked again, alone, because their bytes may be right
                holding.failed.clear()
                self._supply.failed.clear()
            self._mismatched(feed)
            holding.anew()

    async def _begin_anew(self, holding: HeldBody) -> None:
        """Fetch the complete body anew, with a new head, because the wrong peer may have claimed a wrong size too.

        The client has not been sent a byte yet. Raises BlobUnknown.
        """
        peers = self._peers
        holding.alone = True
        if holding.beginnings >= peers.settings.attempts:
            raise unknown(self._request, f"{holding.beginnings + 1} times it came wrong, or not to its end")
        holding.beginnings += 1
        fetch = await self._supply.open_fetch(holding.failed)
        answer = await fetch.first(None, source_first=False)  # a complete peer has verified the bytes
        holding.head, holding.provider = answer.head, answer.provider
        self._trace.resumed += 1
        if isinstance(answer.body, bytes):
            holding.content = answer.body
            self._end(holding, "verified")
            return
        feed = self._begun(answer)
        try:
            held = await peers.is_to_be_held(answer.head)
        except BaseException:
            feed.discard()
            raise
        holding.feed = feed
        if not held:
            holding.hasher = answer.head.digest.hasher()
            self._end(holding, "late")

    async def _adopt(self, holding: HeldBody) -> None:
        """Take over the result of the held body for this client. Raises BlobUnknown."""
        trace = self._trace
        if holding.result == "failed":
            raise unknown(self._request, "another request for it has just failed")
        self.head, self.provider = holding.head, holding.provider
        self._spool, total = holding.spool, self.head.stop - self.head.start
        trace.peer, trace.size = self.served_by, total
        if holding.content is not None:
            self._is_known(holding.content)
        elif holding.result == "verified":
            self._position = Position(total, total)
        else:
            feed = self._feed = holding.rest()
            assert holding.hasher is not None
            self._position, self._hasher = feed.position, holding.hasher.copy()
            if feed.body is None:
                try:
                    await self._supply.change(feed, skip_slow=False)
                except TransferCut as exc:
                    raise unknown(self._request, str(exc)) from None
                self.provider = feed.provider
            return
        trace.verified = time.perf_counter()

    # Sending

    async def send(self, out: Outlet) -> None:
        """Send the body, verified. Call this once, after :meth:`hold`.

        Raises TransferCut if the body can't be completed or is wrong, and exceptions of ``out`` if the client fails.
        """
        try:
            await self._send(out, self._position)
        except OCIError as exc:  # a cut, because the head has been sent and an error answer is impossible
            raise TransferCut(exc.message) from None
        except Truncated:
            raise TransferCut("the file of the body is shorter than it was") from None
        if not self._position.whole:
            raise TransferCut(f"{self._position.sent} of {self._position.total} bytes were sent")

    async def _send(self, out: Outlet, position: Position) -> None:
        if self._content is not None:
            await out.put(self._content)
            position.gave(len(self._content))
            return
        spool = self._spool
        if spool is not None:
            if position.sent < spool.stored:
                await out.file(spool.fd, position.sent, spool.stored, position.gave)
            if rest := spool.rest[position.sent - spool.stored :]:
                await out.put(rest)
                position.gave(len(rest))
        await out.begin()
        if position.left:
            await self._stream(out, position)

    async def _stream(self, out: Outlet, position: Position) -> None:
        """Send the bytes that are still to come from peers."""
        feed = self._feed
        assert feed is not None
        encrypted = feed.body is not None and feed.body.encrypted
        relay = await out.relay(position, self._hasher, encrypted=encrypted)
        into = relay or Passage(out.put, position, self._hasher)
        try:
            await self._supply.fill(feed, into)
            if not await into.hashed():
                raise TransferCut("this node could not hash the bytes")
            if self._hasher is not None:
                if self._hasher.hexdigest() != self.head.digest.encoded:
                    self._mismatched(feed)
                    raise TransferCut(
                        f"the bytes from {feed.provider.registry[0]} do not have digest {self.head.digest}"
                    )
                self._peers.verified(self.head.digest, feed.senders)
            await into.release()
            if self._hasher is None and not self._trace.client and self._is_all():
                senders = [each for each in feed.senders if each.registry not in feed.passed_on]
                self._peers.sent_unhashed(self.head.digest, senders)
        finally:
            into.close()

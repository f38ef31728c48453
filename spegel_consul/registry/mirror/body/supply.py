"""The bytes of a body from one or several peers, on behalf of one client.

If a peer fails or is slow, another peer continues from the byte reached. The caller decides whether bytes of several
peers may be mixed. If they may, the body continues where it stands. If the body has to prove its sender, it ends when
its peer fails.

A peer that is still downloading the body itself is left, too, when the keeper names another one. If it fails, that is
reported to the keeper, and the peer gets no penalty.

Rules for leaving a peer in mid-body, and for the choice of the next one, belong here. Verification of the bytes belongs
to :mod:`spegel_consul.registry.mirror.body.transfer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial

import structlog
import trio

from spegel_consul.http.peer_client import PeerResponse
from spegel_consul.oci.path import ContentRequest
from spegel_consul.peers import PeerError, Provider, host_port
from spegel_consul.registry.mirror.fetch import Fetch, TransferCut, race
from spegel_consul.registry.mirror.following.group_claim import Follow
from spegel_consul.registry.mirror.held_bodies import Feed
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers, image_of
from spegel_consul.registry.mirror.trace import Trace
from spegel_consul.ring.dht.claim_reports import Why
from spegel_consul.zerocopy.encrypted.carrier import Carrier
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.relay import Passage, Relay
from spegel_consul.zerocopy.small_spool import SmallSpool
from spegel_consul.zerocopy.source import SourceLeft, SourceSlow, Throughput
from spegel_consul.zerocopy.spool import Spool

log = structlog.get_logger(__name__)


Taker = Relay | Carrier | Passage | Spool | SmallSpool


def served_by(provider: Provider) -> str:
    """Return ``host:port`` of a provider's registry."""
    return host_port(*provider.registry)


class Supply:
    """Finds peers for the body of ``request``. Fetches that it opens end with ``resources``.

    ``fetch`` is the fetch that found the first peer, if any.
    """

    def __init__(
        self, peers: MirrorPeers, request: ContentRequest, trace: Trace, fetch: Fetch | None, resources: AsyncExitStack
    ) -> None:
        self._peers = peers
        self._request = request
        self._trace = trace
        self._fetch = fetch
        self._resources = resources
        self.failed: list[Provider] = []
        """Providers that failed in mid-body."""

    def forget(self) -> None:
        """Drop the fetch so far, because it was for another body and excludes peers that failed there."""
        self._fetch = None

    async def fill(self, feed: Feed, into: Taker, *, alone: bool = False) -> None:
        """Carry the body to its end, or until ``into`` takes no more. A peer that fails is replaced by another one.

        Raises TransferCut if no peer is left, or, if ``alone``, as soon as the peer fails.
        """
        while not into.ended:
            body = feed.body
            if body is None:
                await self.change(feed, skip_slow=False)
                continue
            follow = feed.follow
            try:
                with self._peers.measured(feed):
                    await self._carry(feed, body, into)
                return
            except SourceSlow as exc:
                await self._prefer_another(feed, exc, alone=alone)
            except SourceLeft:
                registry = feed.provider.registry[0]
                # at debug, because all layers leave a source together
                log.debug("source is left", digest=feed.head.digest, at=feed.reached, registry=registry)
                feed.discard()
                if alone:
                    raise TransferCut(f"at byte {feed.reached} of {feed.head.size}: the source changed") from None
            except PeerError as exc:
                if follow is not None:
                    self._source_failed(feed, follow, exc)
                else:
                    self._has_failed(feed, exc)
                if alone:
                    raise TransferCut(f"at byte {feed.reached} of {feed.head.size}: {exc}") from None

    @staticmethod
    async def _carry(feed: Feed, body: PeerResponse, into: Taker) -> None:
        """Carry the bytes of one peer."""
        pull = _puller(into, body.source)
        if pull is None:
            async with aclosing(body.chunks(feed.throughput)) as pieces:
                async for piece in pieces:
                    await into.put(piece)
                    if feed.position.left and into.ended:
                        return
        else:
            await into.put(body.buffered())
            before = feed.position.taken
            try:
                await pull(feed.throughput)
            finally:
                body.spliced(feed.position.taken - before)
            if not feed.position.left:
                body.taken()

    def _has_failed(self, feed: Feed, why: PeerError) -> None:
        peers, head = self._peers, feed.head
        log.info("peer failed in mid-body", digest=head.digest, at=feed.reached, size=head.size, error=str(why))
        peers.penalties.failed(feed.provider, hung=why.hung, broken=why.broken)
        for key in (head.digest, image_of(self._request)):
            peers.recent.drop(key, feed.provider)
        self.failed.append(feed.provider)
        if self._fetch is not None:
            self._fetch.exclude(feed.provider)
        feed.discard()

    def _source_failed(self, feed: Feed, follow: Follow, why: PeerError) -> None:
        """Report the failure. The source gets no penalty, because its own source may be the one that failed."""
        log.debug("source failed in mid-body", digest=feed.head.digest, at=feed.reached, error=str(why))
        follow.lost(Why.CUT)
        feed.discard()

    async def _prefer_another(self, feed: Feed, why: SourceSlow, *, alone: bool) -> None:
        """Take the rest from a peer that is not slow. Stay with the same peer if there is none, or if ``alone``."""
        slow, body = feed.provider, feed.body
        assert body is not None
        log.info("peer is slow", digest=feed.head.digest, at=feed.reached, registry=slow.registry[0], rate=str(why))
        self._peers.penalties.slow(slow)
        if alone:
            return
        try:
            # bytes that the slow peer sends meanwhile wait in its socket
            await self.change(feed, skip_slow=True)
        except TransferCut as exc:
            log.debug("no other peer", digest=feed.head.digest, error=str(exc))
            return
        body.discard()
        assert self._fetch is not None
        self._fetch.again(slow)

    async def change(self, feed: Feed, *, skip_slow: bool) -> None:
        """Take the rest from another peer. Raises TransferCut if there is none; then ``feed`` is unchanged."""
        fetch = self._fetch
        if fetch is None:
            fetch = await self.open_fetch([*self.failed, *([feed.provider] if feed.body is not None else [])])
        answer = await fetch.resume(feed.head, feed.reached, skip_slow=skip_slow)
        assert isinstance(answer.body, PeerResponse)
        feed.change(answer.provider, answer.body, answer.follow, grows=answer.grows)
        self._trace.resumed += 1
        self._trace.peer = served_by(answer.provider)

    async def open_fetch(self, without: Sequence[Provider]) -> Fetch:
        """Open a fetch that asks no provider in ``without``."""
        fetch = await self._resources.enter_async_context(race(self._peers, self._request, "GET", self._trace))
        for provider in without:
            fetch.exclude(provider)
        self._fetch = fetch
        return fetch


def _puller(
    into: Taker, source: trio.socket.SocketType | SecureSocket | None
) -> Callable[[Throughput], Awaitable[None]] | None:
    """Return the method by which ``into`` takes the bytes from ``source``; None if it is to be given them.

    That is so, too, if TLS comes in mid-body, from another peer, to a relay that moves bytes in the kernel.
    """
    if source is None or isinstance(into, Passage):
        return None
    if isinstance(into, Relay):
        return None if isinstance(source, SecureSocket) else partial(into.pull, source)
    return partial(into.pull, source)

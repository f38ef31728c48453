"""The bytes of a body from one peer after another, on behalf of one client.

A peer that fails, or is slow, is left for another one from the byte reached. The caller says whether that may be: a
body that may be mixed goes on where it stands, and one that is to prove its sender ends when this peer fails.

When to leave a peer, and whom to ask next in mid-body, belongs here. Whether the bytes are right is for transfer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing

import structlog

from spegel_consul.http.peer_client import PeerError
from spegel_consul.oci.path import ContentRequest
from spegel_consul.peers import Provider, host_port
from spegel_consul.registry.mirror.fetch import Fetch, TransferCut, race
from spegel_consul.registry.mirror.held_bodies import Feed
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers
from spegel_consul.registry.mirror.trace import Trace
from spegel_consul.zerocopy.relay import Passage, Relay
from spegel_consul.zerocopy.source import SourceFailed, SourceSlow
from spegel_consul.zerocopy.spool import Spool

log = structlog.get_logger(__name__)


def served_by(provider: Provider) -> str:
    """``host:port`` of a provider's registry."""
    return host_port(*provider.registry)


class Supply:
    """Peers for the body of ``request``; it lasts as long as ``resources``, in which it opens races.

    ``fetch`` is the race in which the first peer was found, if there was one.
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
        """Who failed in mid-body."""

    def forget(self) -> None:
        """The race so far was for another body, of which some peers will not be asked again."""
        self._fetch = None

    async def fill(self, feed: Feed, into: Relay | Passage | Spool, *, alone: bool = False) -> None:
        """Carry the body, from one peer after another, to its end or until ``into`` takes no more.

        Raises TransferCut; if ``alone``, then also as soon as the peer fails.
        """
        while not into.ended:
            body = feed.body
            if body is None:
                await self.change(feed, picky=False)
                continue
            try:
                if isinstance(into, Passage) or self._peers.client.encrypts:
                    async with aclosing(body.chunks(feed.throughput)) as pieces:
                        async for piece in pieces:
                            await into.put(piece)
                            if feed.position.left and into.ended:
                                return
                else:
                    await into.put(body.buffered())
                    before = feed.position.taken
                    try:
                        await into.pull(body.socket, feed.throughput)
                    finally:
                        body.spliced(feed.position.taken - before)
                    if not feed.position.left:
                        body.taken()
                return
            except SourceSlow as exc:
                await self._prefer_another(feed, exc, alone=alone)
            except (PeerError, SourceFailed) as exc:
                self._has_failed(feed, exc)
                if alone:
                    raise TransferCut(f"at byte {feed.reached} of {feed.head.size}: {exc}") from None

    def _has_failed(self, feed: Feed, why: PeerError | SourceFailed) -> None:
        peers, head = self._peers, feed.head
        log.info("peer failed in mid-body", digest=head.digest, at=feed.reached, size=head.size, error=str(why))
        peers.penalties.failed(feed.provider, hung=why.hung, broken=why.broken)
        peers.recent.drop(head.digest, feed.provider)
        self.failed.append(feed.provider)
        if self._fetch is not None:
            self._fetch.exclude(feed.provider)
        feed.discard()

    async def _prefer_another(self, feed: Feed, why: SourceSlow, *, alone: bool) -> None:
        """Have the rest from a peer that is not slow, if there is one; else, and if ``alone``, from the same."""
        slow, body = feed.provider, feed.body
        assert body is not None
        log.info("peer is slow", digest=feed.head.digest, at=feed.reached, registry=slow.registry[0], rate=str(why))
        self._peers.penalties.slow(slow)
        if alone:
            return
        try:
            # what it sends meanwhile waits in its socket
            await self.change(feed, picky=True)
        except TransferCut as exc:
            log.debug("no other peer", digest=feed.head.digest, error=str(exc))
            return
        body.discard()
        assert self._fetch is not None
        self._fetch.again(slow)

    async def change(self, feed: Feed, *, picky: bool) -> None:
        """Have the rest from another peer. Raises TransferCut; then nothing has changed."""
        fetch = self._fetch
        if fetch is None:
            fetch = await self.open_chase([*self.failed, *([feed.provider] if feed.body is not None else [])])
        body, provider = await fetch.resume(feed.head, feed.reached, picky=picky)
        feed.change(provider, body)
        self._trace.resumed += 1
        self._trace.peer = served_by(provider)

    async def open_chase(self, without: Sequence[Provider]) -> Fetch:
        """A race among all that are not in ``without``."""
        fetch = await self._resources.enter_async_context(race(self._peers, self._request, "GET", self._trace))
        for provider in without:
            fetch.exclude(provider)
        self._fetch = fetch
        return fetch

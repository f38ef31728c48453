"""Held bodies: one fetch and one spool file for each digest, shared by all clients that want it.

The first client that asks for a digest begins to hold its body. Clients that ask for the same digest meanwhile join.
One of them, the driver, runs the fetch while it has :attr:`HeldBody.lock`; the others wait for the lock. If the driver
leaves before the end, the next client in the queue gets the lock and goes on with the fetch, because its whole state is
in this object. So the fetch lasts exactly as long as a client waits for it, an error of the fetch ends in the request
of one client, and a single client needs no second task.

Afterwards each client sends from the same file, from an offset of its own. The file is closed when the last client
leaves. A verified body can be joined until then. A body that ended early can't be joined, because only its first
driver has the connection with the rest.

State that clients of one digest share belongs here. The rules for one client are in
:mod:`spegel_consul.registry.mirror.body.transfer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from spegel_consul.http.peer_client import PeerResponse
from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.following.group_claim import Follow
from spegel_consul.registry.mirror.providers.suspects import Address
from spegel_consul.registry.mirror.validate_head import Head
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.send_growing import CHAIN_STALL
from spegel_consul.zerocopy.small_spool import SmallSpool
from spegel_consul.zerocopy.source import Throughput
from spegel_consul.zerocopy.spool import OWN, Spool

if TYPE_CHECKING:
    from hashlib import _Hash


GROWING_STALL = CHAIN_STALL + 2.0
"""Seconds without bytes after which a source that is still downloading has failed.

It is longer than a source waits for its own source, so that a stall at the head of a chain is reported by the first
follower and by nobody behind it. A source that hangs altogether sends no reports either, so the keeper names another
one before this time is over."""


@dataclass(slots=True)
class Feed:
    """A body in transfer. ``provider`` sends it now; ``body`` is None while no peer for the rest has been found."""

    head: Head
    provider: Provider
    body: PeerResponse | None
    position: Position
    throughput: Throughput
    before: tuple[Provider, ...] = ()
    """Providers that sent bytes of the body before ``provider``."""
    since: int = 0
    """Number of bytes that had been taken when ``provider`` began."""
    follow: Follow | None = None
    """If ``provider`` is the source that this node follows."""
    grows: bool = False
    """Whether that source is still downloading the body itself; a complete one is left as any peer is."""
    passed_on: frozenset[Address] = frozenset()
    """The senders that were still downloading the body, and could not verify it."""

    def begin(self) -> None:
        """Begin to take bytes from ``provider``."""
        follow = self.follow
        self.throughput.begin(self.position.left, GROWING_STALL if follow is not None and self.grows else 0.0)
        if follow is not None:
            self.passed_on |= {self.provider.registry}
            follow.streams = True
            follow.on_leave(self.throughput.leave)

    @property
    def reached(self) -> int:
        """The offset in the content of the next byte that is wanted."""
        return self.head.start + self.position.taken

    @property
    def senders(self) -> tuple[Provider, ...]:
        """The providers that have sent bytes of the body, each address once, because its peer id proves nothing."""
        now = (self.provider,) if self.position.taken > self.since else ()
        return tuple({each.registry: each for each in self.before + now}.values())

    def change(
        self, provider: Provider, body: PeerResponse, follow: Follow | None = None, *, grows: bool = False
    ) -> None:
        """Take the rest from ``body``, the answer of ``provider``."""
        self.end_follow()
        self.before, self.since = self.senders, self.position.taken
        self.provider, self.body, self.follow, self.grows = provider, body, follow, grows
        self.begin()

    def discard(self) -> None:
        """Give up the bytes that the provider has not sent yet."""
        self.end_follow()
        body, self.body = self.body, None
        if body is not None:
            body.discard()

    def end_follow(self) -> None:
        """Stop following ``provider``: it has sent the rest, or it is left."""
        follow, self.follow = self.follow, None
        if follow is not None:
            follow.close(self.position.taken - self.since)


@dataclass(eq=False, slots=True)
class HeldBody:
    """A body that is or was held.

    ``until``: the time, in Trio's clock, at which holding ends and the bytes so far are sent; ``alone``: all bytes must
    come from one peer, so the body is begun anew if that peer fails.
    """

    head: Head
    provider: Provider
    feed: Feed | None
    until: float
    alone: bool
    lock: trio.Lock = field(default_factory=trio.Lock)
    spool: Spool | SmallSpool | None = None
    hasher: _Hash | None = None
    content: bytes | None = None
    """The complete body, if it was small enough to be read into memory."""
    result: str = ""
    """The result: verified, late, full, busy or failed; "" while the body is being held."""
    failed: list[Provider] = field(default_factory=list)
    """Providers that are not asked again for this body."""
    beginnings: int = 0
    """Number of times that the body was begun anew."""
    users: dict[object, str] = field(default_factory=dict)
    """The clients that wait for the body or are receiving it, with their addresses, the oldest first."""

    @property
    def payer(self) -> str:
        """The client whose share of the spool space the file takes: this machine if it is a client, else the oldest.

        Another machine that has used up its share must not keep this node's runtime from verified bytes.
        """
        addresses = self.users.values()
        return OWN if OWN in addresses else next(iter(addresses))

    def anew(self) -> None:
        """Drop all bytes so far, so that the complete body can be fetched from another peer."""
        if self.feed is not None:
            self.feed.discard()
            self.feed = None
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    def rest(self) -> Feed:
        """Return the rest of the body for one client. The first call hands over the answer that is being read."""
        assert self.feed is not None
        feed = self.feed
        mine = Feed(
            feed.head,
            feed.provider,
            feed.body,
            Position(feed.position.total, feed.position.taken),
            feed.throughput,
            feed.before,
            feed.since,
            feed.follow,
            feed.grows,
            feed.passed_on,
        )
        if feed.body is None:
            mine.throughput = Throughput(feed.throughput.stall, pace=feed.throughput.pace)
        feed.body = feed.follow = None
        return mine


class HeldBodies:
    """The bodies that are being held, and the verified bodies that are still being sent."""

    def __init__(self) -> None:
        self._by_digest: dict[str, HeldBody] = {}

    def get(self, digest: str | None) -> HeldBody | None:
        """Return the held body of ``digest`` that a client can join, or None."""
        return self._by_digest.get(digest) if digest is not None else None

    def begin(self, holding: HeldBody) -> None:
        """Register a held body, so that clients can join it."""
        self._by_digest[holding.head.digest] = holding

    def enter(self, holding: HeldBody, user: object, client: str) -> None:
        """Add ``user``, at the address ``client``, to the users."""
        holding.users[user] = client
        if holding.spool is not None and not holding.result:
            holding.spool.charge(holding.payer)

    def end(self, holding: HeldBody, result: str) -> None:
        """Set the result. After that, clients can join the body only if it is verified."""
        holding.result = result
        if result != "verified":
            self._forget(holding.head.digest, holding)

    def leave(self, holding: HeldBody, user: object) -> None:
        """Remove ``user``. The last user ends the held body; until then the file is charged to one of the others."""
        holding.users.pop(user, None)
        if holding.users:
            if holding.spool is not None:
                holding.spool.charge(holding.payer)
            return
        self._forget(holding.head.digest, holding)
        holding.anew()

    def _forget(self, digest: Digest, holding: HeldBody) -> None:
        if self._by_digest.get(digest) is holding:
            del self._by_digest[digest]

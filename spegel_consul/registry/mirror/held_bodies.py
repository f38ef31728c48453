"""Bodies that are held until they are verified: one fetch and one file for each digest, however many clients want it.

The first client that asks begins to hold the body. Those that ask for the same digest meanwhile join it. One of them
drives the fetch, which is to hold :attr:`HeldBody.lock`; the others wait for the lock. When the driver leaves before
the end, the next one in the queue gets the lock and goes on where the fetch stands, because all that it needs is in
this object. So the fetch lives exactly as long as somebody waits for it, an error of it ends in the request of one
client, and a client that is alone pays for no other task.

Afterwards each client sends from the same file, from an offset of its own. The file goes when the last of them has
left. A verified one can be joined until then; one that ended early can't, because only its first driver has the rest.

What is shared between the clients of one digest belongs here; what one client does with it is in transfer.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from spegel_consul.http.peer_client import PeerResponse
from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.validate import Head
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.source import Throughput
from spegel_consul.zerocopy.spool import OWN, Spool

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(slots=True)
class Feed:
    """A body as it comes: ``provider`` sends it now; ``body`` is None while a peer for the rest is to be found."""

    head: Head
    provider: Provider
    body: PeerResponse | None
    position: Position
    throughput: Throughput
    before: tuple[Provider, ...] = ()
    """Who sent bytes of it and does not any more."""
    since: int = 0
    """How many bytes had been taken when ``provider`` began."""

    @property
    def reached(self) -> int:
        """The offset in the content of the next byte that is wanted."""
        return self.head.start + self.position.taken

    @property
    def senders(self) -> tuple[Provider, ...]:
        """Who sent bytes of it, each address once, because its peer id proves nothing."""
        now = (self.provider,) if self.position.taken > self.since else ()
        return tuple({each.registry: each for each in self.before + now}.values())

    def change(self, provider: Provider, body: PeerResponse) -> None:
        """The rest comes from ``provider``."""
        self.before, self.since = self.senders, self.position.taken
        self.provider, self.body = provider, body
        self.throughput.begin(self.position.left)

    def discard(self) -> None:
        """Give up what the provider has not sent yet."""
        body, self.body = self.body, None
        if body is not None:
            body.discard()


@dataclass(eq=False, slots=True)
class HeldBody:
    """A body that is being held, or was; ``alone``: it is taken from one peer whole, or anew from another.

    ``until``: when it is sent as far as it came, in Trio's time.
    """

    head: Head
    provider: Provider
    feed: Feed | None
    until: float
    alone: bool
    lock: trio.Lock = field(default_factory=trio.Lock)
    spool: Spool | None = None
    hasher: _Hash | None = None
    content: bytes | None = None
    """All of it, if it turned out to be so small that it was read into memory."""
    result: str = ""
    """What became of it: verified, late, full, busy or failed; "" while that is open."""
    failed: list[Provider] = field(default_factory=list)
    """Who is not to be asked again for it."""
    beginnings: int = 0
    """How often it was begun anew."""
    users: dict[object, str] = field(default_factory=dict)
    """The clients that wait for it or are being sent it, with their addresses, the oldest first."""

    @property
    def payer(self) -> str:
        """Whose share of the room the file takes: this machine's if it is among the clients, else the oldest one's.

        Another machine that has used up its share must not keep this node's runtime from verified bytes.
        """
        addresses = self.users.values()
        return OWN if OWN in addresses else next(iter(addresses))

    def anew(self) -> None:
        """Drop what has come: a peer is to be found that sends all of it."""
        if self.feed is not None:
            self.feed.discard()
            self.feed = None
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    def rest(self) -> Feed:
        """What is still to come of it, for one client. The first that asks gets the answer that is being read."""
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
        )
        if feed.body is None:
            mine.throughput = Throughput(feed.throughput.stall)
        feed.body = None
        return mine


class HeldBodies:
    """The bodies that are being held, and the verified ones that are still being sent."""

    def __init__(self) -> None:
        self._by_digest: dict[str, HeldBody] = {}

    def get(self, digest: str | None) -> HeldBody | None:
        """The one to join for ``digest``, if there is one."""
        return self._by_digest.get(digest) if digest is not None else None

    def begin(self, holding: HeldBody) -> None:
        """It can be joined from now on."""
        self._by_digest[holding.head.digest] = holding

    def enter(self, holding: HeldBody, user: object, client: str) -> None:
        """``user`` at the address ``client`` waits for it."""
        holding.users[user] = client
        if holding.spool is not None and not holding.result:
            holding.spool.charge(holding.payer)

    def end(self, holding: HeldBody, result: str) -> None:
        """It is over; only a verified one can be joined any more."""
        holding.result = result
        if result != "verified":
            self._forget(holding.head.digest, holding)

    def leave(self, holding: HeldBody, user: object) -> None:
        """``user`` needs it no more. The last one ends it; until then its file counts for one of the others."""
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

# What the ring needs of a network, and nothing else: connections that authenticate a peer, and streams of
# bytes over them.  The router above is written against this; libp2p is one implementation, a simulated
# network another.
#
# Sending never waits: what is sent is queued whole or not at all, so a task that is cancelled around a send
# leaves nothing half-written.  A host that can't get rid of a queue resets the stream.

"""The ``Host`` protocol: authenticated connections and byte streams between peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from spegel_consul.peers import RingError
from spegel_consul.ring.dht.multiaddrs import Address


class Unreachable(RingError):
    """No connection to the peer could be made, or it was lost."""


class DialledSelf(Unreachable):
    """Behind the address is this very node."""


class Replaced(Unreachable):
    """At all addresses of the peer there are others now."""


class ProtocolRefused(RingError):
    """The peer does not speak the protocol."""


class StreamClosed(RingError):
    """The stream can't be used any more: its connection is gone, or one of both sides reset it."""


class StreamReset(StreamClosed):
    """The peer reset the stream: it has not taken what was sent, and has nothing more to say."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a peer says of itself (libp2p identify): the protocols it serves and its binary multiaddrs."""

    protocols: frozenset[str]
    addresses: tuple[bytes, ...]


class Stream(Protocol):
    """A two-way stream of bytes with one peer, for one protocol."""

    @property
    def peer(self) -> bytes:
        """The binary id of the peer, authenticated by the connection."""
        ...

    def send(self, data: bytes) -> None:
        """Queue ``data``. Raises StreamClosed."""
        ...

    async def receive(self) -> bytes:
        """Some bytes, or ``b""`` after the peer closed its side. Raises StreamClosed.

        After a receive that was cancelled the stream is only good for a reset.
        """
        ...

    def close(self) -> None:
        """Nothing more will be sent; what is queued still goes out. Never fails."""
        ...

    def reset(self) -> None:
        """Abandon the stream in both directions. Never fails, may be called twice."""
        ...


Handler = Callable[[Stream], Awaitable[None]]


class Host(Protocol):
    """Connections to peers. Ids are binary peer ids."""

    on_disconnect: Callable[[bytes], None]
    """Called when the last connection to a peer is gone."""

    refuses: Callable[[bytes], bool]
    """Asked when a peer has proved who it is: whether no connection to it is to be kept."""

    @property
    def id(self) -> bytes: ...

    @property
    def address(self) -> Address:
        """Where others dial this host; known before :meth:`run` unless the port is 0."""
        ...

    def connected(self) -> tuple[bytes, ...]:
        """The peers to which a connection stands."""
        ...

    def is_connected(self, peer: bytes) -> bool:
        """Whether a connection to ``peer`` stands."""
        ...

    def serve(self, protocol: str, handler: Handler) -> None:
        """Call ``handler`` for each stream that a peer opens for ``protocol``; before :meth:`run`.

        The host resets the stream if the handler raises an Exception; nothing else comes of it.
        """
        ...

    async def dial(self, host: str, port: int) -> bytes:
        """The id of whoever is there, after connecting to it if need be. Raises Unreachable, or DialledSelf."""
        ...

    async def open(self, peer: bytes, addresses: Sequence[Address], protocol: str) -> Stream:
        """A stream to ``peer``, after dialling ``addresses`` if there is no connection.

        Raises Unreachable (Replaced if others have its addresses) or ProtocolRefused. Cancelling it does not cancel a
        dial that others wait for.
        """
        ...

    async def identify(self, peer: bytes) -> Identity:
        """Ask a connected peer who it is. Raises RingError."""
        ...

    def disconnect(self, peer: bytes) -> None:
        """Drop all connections to ``peer``, which does not answer any more."""
        ...

    def retire(self) -> None:
        """Accept no more connections; those that stand go on."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; ``started()`` when it listens. Raises RingError if it can't."""
        ...

"""The ``Host`` protocol: authenticated connections and byte streams between peers.

This is all that the ring needs of a network.  The router is written against it; libp2p is one implementation, a
simulated network another, and one conformance suite runs against both.

Sending never waits: each send is queued whole or not at all, so a task that is cancelled around a send leaves nothing
half-written.  If a queue exceeds its limit because the peer does not read, the host resets the stream.

A method belongs here only if both implementations can offer it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.multiaddrs import Address
from spegel_consul.peers import RingError

HANDSHAKE_TIMEOUT = 5.0
"""Seconds for the handshake of a new connection."""


class Unreachable(RingError):
    """No connection to the peer could be made, or it was lost."""


class Silent(Unreachable):
    """No connection or stream could be made, because an address or the peer did not answer in time."""


class DialledSelf(Unreachable):
    """The node at the address is this node itself, or one with its identity."""


class Replaced(Unreachable):
    """All addresses of the peer belong to other peers now."""


class ProtocolRefused(RingError):
    """The peer does not speak the protocol."""


class StreamClosed(RingError):
    """The stream is unusable: its connection is gone, or one side reset it."""


class StreamReset(StreamClosed):
    """The peer reset the stream: it discarded the sent bytes and sends no more."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The self-description of a peer (libp2p identify): the protocols it serves and its binary multiaddrs."""

    protocols: frozenset[str]
    addresses: tuple[bytes, ...]


Take = Callable[[bytes], bool]
"""Handles arriving bytes at once, or returns False without having read them. It does not wait."""


class Stream(Protocol):
    """A two-way stream of bytes with one peer, for one protocol."""

    @property
    def peer(self) -> bytes:
        """The binary id of the peer, authenticated by the connection."""
        ...

    def send(self, data: bytes) -> None:
        """Queue ``data``. Raises StreamClosed."""
        ...

    async def receive(self, take: Take | None = None) -> bytes:
        """The next bytes, or ``b""`` after the peer closed its side. Raises StreamClosed.

        While the call waits, arriving bytes may be given to ``take``, by the task that reads the connection. The call
        returns the bytes for which it returned False, and raises its exceptions.

        After a cancelled receive the stream can only be reset.
        """
        ...

    def close(self) -> None:
        """End this side of the stream after the queued bytes are sent. Never fails."""
        ...

    def reset(self) -> None:
        """Abandon the stream in both directions. Never fails, may be called twice."""
        ...


Handler = Callable[[Stream], Awaitable[None]]


class Host(Protocol):
    """Connections to peers. Ids are binary peer ids."""

    on_disconnect: Callable[[bytes], None]
    """Called after the last connection to a peer ended."""

    refuses: Callable[[bytes], bool]
    """Called with each newly authenticated peer; True refuses the connection."""

    on_duplicate: Callable[[str], None]
    """Called with the address of another process that has this host's identity, after each handshake with it."""

    @property
    def id(self) -> bytes: ...

    @property
    def address(self) -> Address:
        """The address at which others dial this host; known before :meth:`run` unless the port is 0."""
        ...

    def connected(self) -> tuple[bytes, ...]:
        """The peers with a connection."""
        ...

    def is_connected(self, peer: bytes) -> bool:
        """Whether there is a connection to ``peer``."""
        ...

    def hosts_of(self, peer: bytes) -> tuple[str, ...]:
        """The hosts at which ``peer`` is connected: as they were dialled, or the IP addresses from which it came."""
        ...

    def serve(self, protocol: str, handler: Handler) -> None:
        """Call ``handler`` for each stream that a peer opens for ``protocol``; call this before :meth:`run`.

        If the handler raises an Exception, the host resets the stream and goes on.
        """
        ...

    async def dial(self, host: str, port: int) -> bytes:
        """The id of the peer at the address, after connecting to it if need be. Raises Unreachable or DialledSelf."""
        ...

    async def open(self, peer: bytes, addresses: Sequence[Address], protocol: str) -> Stream:
        """A stream to ``peer``, after dialling ``addresses`` if there is no connection.

        Raises Unreachable (Replaced if other peers have its addresses, Silent if a deadline passed) or
        ProtocolRefused. Cancelling the call does not cancel a dial that other callers wait for.
        """
        ...

    async def identify(self, peer: bytes) -> Identity:
        """Ask a connected peer for its self-description. Raises RingError."""
        ...

    def disconnect(self, peer: bytes) -> None:
        """Drop all connections to ``peer``."""
        ...

    def retire(self) -> None:
        """Accept no more connections; existing ones go on."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; calls ``started()`` when it listens. Raises RingError if it can't listen."""
        ...

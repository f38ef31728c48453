# HTTP/1.1 to other nodes' registries.
#
# Three deadlines keep a pull from hanging on a peer: to connect, to the first byte of the answer, and between
# any two bytes after it.  The client of the mirror waits for more than a minute on its own, so these are the
# only protection that it has.  A connection goes back to the pool only when its answer was read to the end.

"""A client for the registries of peers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import h11
import trio

_RECEIVE = 1 << 18
_RECEIVE_HEAD = 1 << 12  # what is read of the body here can't be spliced any more
_MAX_HEAD = 1 << 16


class PeerError(Exception):
    """The peer did not answer as it should; the message says how.

    ``hung``: it kept us waiting until a deadline, and would the next one too.
    """

    def __init__(self, message: str, *, hung: bool = False) -> None:
        super().__init__(message)
        self.hung = hung


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Deadlines in seconds: to connect, to the head of the answer, and between two reads of its body."""

    connect: float = 1.0
    first_byte: float = 2.0
    stall: float = 5.0
    idle: float = 30.0
    idle_connections: int = 8


class PeerResponse:
    """The head of an answer, and its body as it comes. Close it, or read it to the end."""

    def __init__(self, client: PeerClient, connection: _Connection, head: h11.Response) -> None:
        self._client = client
        self._connection: _Connection | None = connection
        self.status: int = head.status_code
        self._headers: dict[bytes, bytes] = dict(head.headers)

    def header(self, name: bytes) -> str | None:
        """The value of a header field by its lower-case name."""
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body. Raises PeerError if it stalls or ends early."""
        connection = self._connection
        assert connection is not None, "a body is read once"
        stall = self._client.limits.stall
        while True:
            event = await connection.next_event(stall, "sent nothing for")
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._connection = None
                self._client._put_back(connection)
                return
            else:
                raise PeerError(f"{connection} closed the connection")

    def buffered(self) -> bytes:
        """What has been received of the body already; the rest is to be taken from :attr:`socket`.

        Raises PeerError if the body is not framed by its length. When the rest was taken, call :meth:`taken`.
        """
        connection = self._connection
        assert connection is not None, "a body is read once"
        received = b""
        while True:
            try:
                event = connection.http.next_event()
            except h11.RemoteProtocolError as exc:
                raise PeerError(f"{connection} does not speak HTTP: {exc}") from None
            if isinstance(event, h11.Data):
                received += event.data
            elif isinstance(event, h11.EndOfMessage) or event is h11.NEED_DATA:
                return received
            else:
                raise PeerError(f"{connection} closed the connection")

    @property
    def socket(self) -> trio.socket.SocketType:
        """The peer's socket, behind what was buffered."""
        assert self._connection is not None
        return self._connection.stream.socket

    def taken(self) -> None:
        """The body was taken to its last byte and no further; the connection can be used again."""
        connection, self._connection = self._connection, None
        assert connection is not None
        if self.header(b"connection") is None and not connection.http.trailing_data[0]:
            # the parser did not see the body pass, so it is replaced by one that has seen nothing
            connection.http = _parser()
            self._client._keep(connection)
        else:
            connection.close()

    def discard(self) -> None:
        """Give up the rest of the body."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _parser() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)


class _Connection:
    def __init__(self, address: tuple[str, int], stream: trio.SocketStream) -> None:
        self.address = address
        self.stream = stream
        self.http = _parser()
        self.idle_since = 0.0
        self.reused = False

    def __str__(self) -> str:
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def next_event(
        self, patience: float, what: str, most: int = _RECEIVE
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError as exc:
                raise PeerError(f"{self} does not speak HTTP: {exc}") from None
            if event is not h11.NEED_DATA:
                return event
            with trio.move_on_after(patience) as scope:
                try:
                    data = await self.stream.receive_some(most)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise PeerError(f"{self} reset the connection") from None
            if scope.cancelled_caught:
                raise PeerError(f"{self} {what} {patience:g} s", hung=True)
            try:
                self.http.receive_data(bytes(data))
            except h11.RemoteProtocolError:
                raise PeerError(f"{self} closed the connection") from None

    def close(self) -> None:
        # not the stream's aclose(): there is nothing to flush, so there is nothing to wait for
        self.stream.socket.close()


class PeerClient:
    """Asks peers, over connections that are kept for the next request."""

    def __init__(self, limits: PeerLimits | None = None) -> None:
        self.limits = limits or PeerLimits()
        self._idle: dict[tuple[str, int], list[_Connection]] = {}
        self._next_sweep = 0.0

    async def request(
        self, address: tuple[str, int], method: str, target: str, headers: Sequence[tuple[str, str]]
    ) -> PeerResponse:
        """Send a request without a body and return the head of the answer. Raises PeerError."""
        connection = await self._connect(address)
        try:
            try:
                head = await self._exchange(connection, method, target, headers)
            except PeerError as exc:
                if not connection.reused or exc.hung:
                    raise
                # the peer closed a kept connection just as we took it: once more on a new one
                connection.close()
                connection = await self._connect(address, fresh=True)
                head = await self._exchange(connection, method, target, headers)
        except BaseException:
            connection.close()
            raise
        return PeerResponse(self, connection, head)

    async def _exchange(
        self, connection: _Connection, method: str, target: str, headers: Sequence[tuple[str, str]]
    ) -> h11.Response:
        message = h11.Request(method=method, target=target, headers=[("host", str(connection)), *headers])
        data = connection.http.send(message)
        end = connection.http.send(h11.EndOfMessage())
        patience = self.limits.first_byte
        with trio.move_on_after(patience):
            try:
                await connection.stream.send_all((data or b"") + (end or b""))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise PeerError(f"{connection} reset the connection") from None
            while True:
                event = await connection.next_event(patience, "did not answer within", _RECEIVE_HEAD)
                if isinstance(event, h11.Response):
                    return event
                if not isinstance(event, h11.InformationalResponse):
                    raise PeerError(f"{connection} closed the connection")
        raise PeerError(f"{connection} did not answer within {patience:g} s", hung=True)

    async def _connect(self, address: tuple[str, int], *, fresh: bool = False) -> _Connection:
        kept = self._idle.get(address, [])
        while kept and not fresh:
            connection = kept.pop()
            if trio.current_time() - connection.idle_since < self.limits.idle:
                connection.reused = True
                return connection
            connection.close()
        with trio.move_on_after(self.limits.connect):
            try:
                stream = await trio.open_tcp_stream(*address)
            except OSError as exc:
                reason = exc.__cause__ or exc.__context__ or exc
                raise PeerError(f"{address[0]} port {address[1]} can't be reached: {reason}") from None
            return _Connection(address, stream)
        raise PeerError(f"{address[0]} port {address[1]} did not accept within {self.limits.connect:g} s", hung=True)

    def _put_back(self, connection: _Connection) -> None:
        http = connection.http
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
            self._keep(connection)
        else:
            connection.close()

    def _keep(self, connection: _Connection) -> None:
        now = trio.current_time()
        if now >= self._next_sweep:
            self._next_sweep = now + self.limits.idle
            self._sweep(now)
        kept = self._idle.setdefault(connection.address, [])
        if len(kept) < self.limits.idle_connections:
            connection.idle_since = now
            kept.append(connection)
        else:
            connection.close()

    def _sweep(self, now: float) -> None:
        """Close what has been idle for too long, at peers that nobody asks any more too."""
        for address, connections in list(self._idle.items()):
            for connection in connections:
                if now - connection.idle_since >= self.limits.idle:
                    connection.close()
            fresh = [connection for connection in connections if now - connection.idle_since < self.limits.idle]
            if fresh:
                self._idle[address] = fresh
            else:
                del self._idle[address]

    def close(self) -> None:
        """Close the connections that are kept."""
        for kept in self._idle.values():
            for connection in kept:
                connection.close()
        self._idle.clear()

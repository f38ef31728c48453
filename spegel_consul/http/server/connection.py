# hypercorn's connection with two of its parts replaced, and its protocol (protocol.py).
#
# Sending: hypercorn sends under a shield without a timeout, so one client that stops reading would keep the process
# from stopping; ours gives up when it is cancelled and then closes the connection, because a half-sent frame can't
# be continued.  And whatever a connection raises ends here: hypercorn lets exception groups through, and one peer's
# reset must not take the server down.
#
# Reading: while nothing else is going on, what is received is offered to a handler that may answer it on the socket
# itself: the fast path.  Bytes that it does not take go to hypercorn as they came, and everything else - parsing,
# pipelining, HTTP/2, bodies, the application's life - is hypercorn's.  Between requests it waits in the lobby.

"""One client's connection."""

from __future__ import annotations

import os
import select
import socket
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from ipaddress import ip_address
from typing import Protocol, cast

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr

from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.http.server.hypercorn_protocol import Http11, Wrapper
from spegel_consul.http.server.idle_connections import RECEIVE, IdleConnection, IdleConnections
from spegel_consul.http.server.idle_timer import IdleTimer
from spegel_consul.http.tls import Tls
from spegel_consul.peers import unmapped
from spegel_consul.zerocopy.send import STALL, Truncated
from spegel_consul.zerocopy.spool import OWN

log = structlog.get_logger(__name__)

standing: Counter[int] = Counter()
"""How many connections stand, by the port of ours that they came to."""

_PIECE = 1 << 16
_HANDSHAKE = 10.0  # seconds
_CLOSE_WITHIN = 5.0  # seconds, of which a client that still sends is heard for one
_LAST_WORDS = 64  # reads of what is not answered
_MOMENT = 1.0  # seconds in which a client that has closed its direction takes something, if it is still there


class Link:
    """The socket of a connection, as the fast path sees it."""

    __slots__ = ("client", "local", "sock")

    def __init__(self, sock: trio.socket.SocketType, *, local: bool, client: str = OWN) -> None:
        self.sock = sock
        self.client = client
        """The address of the client, or :data:`OWN` if it is on this machine."""
        self.local = local
        """Whether the client is on this machine: it reached us from the address that it called."""

    def check_client(self) -> None:
        """Raises ConnectionResetError if the client has left, while nobody reads from it."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        if poll.poll(0):
            raise ConnectionResetError("the client has left")


class FastPath(Protocol):
    """Answers requests without hypercorn."""

    def at_once(self, data: bytes, local: bool, /) -> bytes | None:
        """See :data:`spegel_consul.http.server.idle_connections.AtOnce`."""
        ...

    def __call__(self, data: bytes, link: Link, /) -> Awaitable[bool]:
        """Answer on the link and return True, or send nothing and return False, if ``data`` is no simple request."""
        ...


class Connection(TCPServer):
    """Serves one client until it leaves or is idle for too long."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        fast_path: FastPath | None,
        idle_connections: IdleConnections | None,
        tls: Tls | None,
        limits: ConnectionLimits | None,
        called: frozenset[str],
        stream: trio.SocketStream,
    ) -> None:
        # hypercorn's annotation names only the encrypted one of the two streams that it serves
        super().__init__(app, config, context, state, cast("trio.SSLStream[trio.SocketStream]", stream))
        self._called = called
        self._limits = limits
        self._plain = stream
        self._tls = tls
        self._fast_path = fast_path
        self._idle_connections = idle_connections
        self._idle: IdleConnection | None = None
        self._address = ""  # of a client that has come through the door
        self._sent = 0  # pieces
        self._answered = trio.Event()  # set when an answer has ended while we wait for that
        # not the task group's own scope: hypercorn's group lets the cancellation that it ends with escape
        self._life = trio.CancelScope()
        self._timer = IdleTimer(config.keep_alive_timeout, context.terminated.wait, self._close_idle)
        self.idle_task = self._timer  # type: ignore[assignment]

    async def run(self) -> None:
        sock, port = self._plain.socket, 0
        try:
            # Trio lets 16 KiB wait unsent, which is kind to latency and costs a wake-up for every few KiB of a blob
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            if client is not None and server is not None and str(unmapped(ip_address(client[0]))) in self._called:
                # a port mapping has put another address in place of the one that this client called, its own
                server = (client[0], server[1])
            local = client is not None and server is not None and client[0] == server[0]
            if self._limits is not None and client is not None and not local:
                if not self._limits.enter(client[0]):
                    await trio.aclose_forcefully(self._plain)  # nobody is heard out here
                    return
                self._address = client[0]
                await self._turn()
            port = server[1] if server is not None else 0
            standing[port] += 1
            if self._tls is not None:
                await self._encrypt(self._tls)
            with self._life:
                async with TaskGroup() as group:
                    self._task_group = group
                    self.protocol = Wrapper(
                        self.app,
                        self.config,
                        self.context,
                        group,
                        ConnectionState(self.state),
                        self._tls is not None,
                        client,
                        server,
                        self.protocol_send,
                        self._turn,
                        "http/1.1",
                    )
                    await self.protocol.initiate()
                    await self._timer.restart(group, None)
                    await self._read(Link(sock, local=local, client=OWN if local or client is None else client[0]))
        except Exception as exc:
            # a group of resets and closed resources is how a client's departure looks from here
            log.debug("connection ended", error=_leaf(exc))
        finally:
            try:
                await self._close()
            finally:
                standing[port] -= bool(port)
                if self._limits is not None and self._address:
                    self._limits.leave(self._address)

    async def _turn(self) -> None:
        """Wait until this client may begin something; one on this machine always may."""
        if self._limits is not None and self._address:
            await self._limits.turns.take(self._address)

    async def _encrypt(self, tls: Tls) -> None:
        self.stream = trio.SSLStream(self._plain, tls.server(), server_side=True, https_compatible=True)
        with trio.fail_after(_HANDSHAKE):
            await self.stream.do_handshake()

    async def _read(self, link: Link) -> None:
        timer, fast_path, idle_connections = self._timer, self._fast_path, self._idle_connections
        self._idle = idle = IdleConnection(link.sock, timer, link.local, self.context.terminated.is_set)
        try:
            while True:
                waits = idle_connections is not None and timer.idle and self._at_rest()
                try:
                    if self._tls is not None:
                        data = bytes(await self.stream.receive_some(RECEIVE))
                    else:
                        data = await (
                            idle_connections.next_request(idle) if idle_connections and waits else _receive(link.sock)
                        )
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                    break
                # also of what leaves: thousands that go at once are as much work as thousands that come
                await self._turn()
                if fast_path is not None and data and timer.idle and (waits or self._at_rest()):
                    timer.idle = False
                    try:
                        answered = await fast_path(data, link)
                    except (OSError, trio.ClosedResourceError, trio.TooSlowError, Truncated):
                        break
                    except Exception:
                        log.exception("request failed", request=data.split(b"\r\n", 1)[0][:1000].decode("latin-1"))
                        break
                    timer.touch()
                    if answered:
                        if self.context.terminated.is_set():
                            break
                        continue
                if not data:
                    await self._end_answer()
                await self.protocol.handle(RawData(data))
                if not data:
                    break
            await self.protocol.handle(Closed())
        finally:
            timer.end()

    async def _close_idle(self) -> None:
        if self._idle_connections is not None and self._idle is not None:
            self._idle_connections.dismiss(self._idle)
        await self._initiate_server_close()

    def _at_rest(self) -> bool:
        """Whether hypercorn waits for a new request and holds no byte of it."""
        protocol = self.protocol.protocol
        if type(protocol) is not Http11 or protocol.stream is not None:
            return False
        http = protocol.connection
        return (
            isinstance(http, h11.Connection)
            and http.our_state is h11.IDLE
            and http.their_state is h11.IDLE
            and not http.trailing_data[0]
        )

    async def _end_answer(self) -> None:
        """The client says nothing more (RFC 9112, 9.6), or has left, which looks the same until something is sent: so
        what it asked for is answered for a moment, and for as long as it takes some of that in each."""
        seen = -1
        while self._is_answering() and self._sent != seen:
            seen, self._answered = self._sent, trio.Event()
            with trio.move_on_after(_MOMENT):
                await self._answered.wait()

    async def _close(self) -> None:
        """Close it, after what the client still sends: unread, that would make a reset of it, which can overtake the
        answer (RFC 9112, 9.6)."""
        try:
            if self._tls is None:
                await self._hear_out(self._plain.socket)
        finally:
            await super()._close()

    async def _hear_out(self, sock: trio.socket.SocketType) -> None:
        # whoever reads from it now hears it out himself; a client that has left is no matter
        with suppress(OSError, ValueError, trio.BusyResourceError, trio.ClosedResourceError):
            sock.shutdown(socket.SHUT_WR)
            with trio.move_on_after(_MOMENT):
                for _ in range(_LAST_WORDS):
                    if not await _receive(sock):
                        return

    def _is_answering(self) -> bool:
        """Whether hypercorn answers a request that has come whole."""
        protocol = self.protocol.protocol
        if type(protocol) is not Http11 or protocol.stream is None:
            return False
        return protocol.connection.their_state in (h11.DONE, h11.MUST_CLOSE)

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            # the application may be cancelled because its client is gone, and this closes the connection for good
            with trio.move_on_after(_CLOSE_WITHIN, shield=True):
                await super().protocol_send(event)
            self._answered.set()
            return
        try:
            async with self.send_lock:
                data = memoryview(event.data)
                for start in range(0, len(data), _PIECE):
                    with trio.fail_after(STALL):
                        await self.stream.send_all(data[start : start + _PIECE])
                    self._sent += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            # the client is gone, or as good as: whatever is still going on for it ends here
            self._life.cancel()
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            await trio.aclose_forcefully(self.stream)
            raise


async def _receive(sock: trio.socket.SocketType) -> bytes:
    while True:
        if sock.fileno() < 0:  # a request was refused; Trio would take the number for a descriptor's
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(sock)
        try:
            return os.read(sock.fileno(), RECEIVE)
        except BlockingIOError:
            continue


def _leaf(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return repr(exc)

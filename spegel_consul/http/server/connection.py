"""One client's connection: hypercorn's, with two of its parts replaced, and with the HTTP/1.1 of
:mod:`spegel_consul.http.server.hypercorn_protocol`.

Sending: hypercorn sends under a shield without a timeout, so one client that stops reading would keep the process from
stopping. Here, sending ends when it is cancelled and then closes the connection, because a half-sent frame can't be
continued. Every exception of a connection ends here, because hypercorn lets exception groups through, and one peer's
reset must not stop the server.

Reading: while no request is being answered, received bytes are offered to a handler that may answer them on the socket
itself: the fast path. Other bytes are passed to hypercorn unchanged, which does everything else: parsing, pipelining,
HTTP/2, bodies, the application's life. Between requests the connection waits with the other idle connections.

Closing is graceful: the bytes that the client still sends are read for a moment, because unread bytes would turn the
close into a reset.

A new rule belongs here if it concerns the life of one connection, whatever is requested.
"""

from __future__ import annotations

import os
import select
import socket
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
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

from spegel_consul.http.peer_tls import PeerTls
from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.http.server.hypercorn_protocol import Wrapper
from spegel_consul.http.server.idle_connections import RECEIVE, IdleConnection, IdleConnections
from spegel_consul.http.server.idle_timer import IdleTimer
from spegel_consul.http.server.negotiate import HealthOnly, negotiate
from spegel_consul.peers import unmapped_host
from spegel_consul.zerocopy.encrypted.kernel_outlet import KernelOutlet
from spegel_consul.zerocopy.encrypted.kernel_socket import KernelSocket
from spegel_consul.zerocopy.encrypted.secure_outlet import SecureOutlet
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.outlet import Outlet, SocketOutlet
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.send import STALL, FileAnswer, Truncated, send_bytes
from spegel_consul.zerocopy.spool import OWN

log = structlog.get_logger(__name__)

standing: Counter[int] = Counter()
"""Number of open connections by local port."""

_PIECE = 1 << 16
_CLOSE_WITHIN = 5.0  # seconds
_DRAIN_READS = 64  # reads before a graceful close gives up
_LINGER = 1.0  # seconds for the reads of a graceful close, and in which a half-closed client must take some bytes


class Link:
    """The fast path's view of a connection."""

    __slots__ = ("_secure", "_sock", "client", "local")

    def __init__(
        self, sock: trio.socket.SocketType, *, local: bool, client: str = OWN, secure: SecureSocket | None = None
    ) -> None:
        self._sock = sock
        self._secure = secure
        self.client = client
        """The address of the client, or :data:`OWN` if it is on this machine."""
        self.local = local
        """Whether the client is on this machine, which it is if its address is the one that it connected to."""

    async def send(self, data: bytes | memoryview) -> None:
        """Send ``data``. Raises OSError, trio.TooSlowError or trio.ClosedResourceError."""
        if self._secure is None:
            await send_bytes(self._sock, data)
        else:
            await self._secure.send_all(data)

    def outlet(self, head: bytes, pace: Pace | None = None) -> Outlet:
        """Return the outlet for an answer; ``head`` goes with the first bytes of its body.

        ``pace``: the limit that bytes of files are counted against.
        """
        if self._secure is None:
            return SocketOutlet(self._sock, head, pace)
        if isinstance(self._secure, KernelSocket):
            return KernelOutlet(self._secure, head, pace)
        return SecureOutlet(self._secure, head, pace)

    def check_client(self) -> None:
        """Raise ConnectionResetError if the client has left; for use while no task reads from the socket."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        if poll.poll(0):
            raise ConnectionResetError("the client has left")


class FastPath(Protocol):
    """Answers requests without hypercorn."""

    def at_once(self, data: bytes, local: bool, /) -> bytes | FileAnswer | None:
        """See :data:`spegel_consul.http.server.idle_connections.AtOnce`."""
        ...

    def __call__(self, data: bytes, link: Link, /) -> Awaitable[bool]:
        """Answer on the link and return True, or send nothing and return False if hypercorn must answer ``data``."""
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
        tls: PeerTls | None,
        limits: ConnectionLimits | None,
        called: frozenset[str],
        stream: trio.SocketStream,
        *,
        only_own: bool = False,
    ) -> None:
        # hypercorn's annotation names only the encrypted one of the two streams that it serves
        super().__init__(app, config, context, state, cast("trio.SSLStream[trio.SocketStream]", stream))
        self._called = called
        self._only_own = only_own
        self._limits = limits
        self._plain = stream
        self._tls = tls
        self._secure: SecureSocket | None = None
        self._first = b""  # bytes that were read to see whether the client speaks TLS
        self._fast_path = fast_path
        self._idle_connections = idle_connections
        self._idle: IdleConnection | None = None
        self._wrapper: Wrapper
        self._address = ""  # of a client that the connection limits count
        self._sent = 0  # pieces
        self._answered = trio.Event()  # set when an answer has ended
        # a scope around the task group, because hypercorn's group lets the cancellation of its own scope escape
        self._life = trio.CancelScope()
        self._timer = IdleTimer(config.keep_alive_timeout, context.terminated.wait, self._close_idle)
        self.idle_task = self._timer  # type: ignore[assignment]

    async def run(self) -> None:
        sock, port, wrapper = self._plain.socket, 0, None
        try:
            # no limit for unsent bytes, because Trio's limit of 16 KiB costs a wake-up for every few KiB of a blob
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
            client = _address(sock.family, sock.getpeername())
            server = _address(sock.family, sock.getsockname())
            if client is not None and server is not None and self._is_called(client[0]):
                # a port mapping has replaced the address that this client on the same machine connected to
                server = (client[0], server[1])
            local = client is not None and server is not None and client[0] == server[0]
            if self._limits is not None and client is not None and not local:
                if not self._limits.enter(client[0]):
                    self._plain.socket.close()  # not graceful, because that would cost time and a file
                    return
                self._address = client[0]
                await self._turn()
            port = server[1] if server is not None else 0
            standing[port] += 1
            if self._tls is not None:
                await self._negotiate(self._tls, client[0] if client is not None else "", local=local)
            with self._life:
                async with TaskGroup() as group:
                    self._task_group = group
                    self.protocol = self._wrapper = wrapper = Wrapper(
                        self.app,
                        self.config,
                        self.context,
                        group,
                        ConnectionState(self.state),
                        self._secure is not None,
                        client,
                        server,
                        self.protocol_send,
                        self._turn_of_request,
                    )
                    address = OWN if local or client is None else client[0]
                    await self._read(Link(sock, local=local, client=address, secure=self._secure))
        except Exception as exc:
            # resets and closed resources, in a group, are the usual departure of a client
            log.debug("connection ended", error=_leaf(exc))
        finally:
            try:
                await self._close()
            finally:
                standing[port] -= bool(port)
                if self._limits is not None and self._address:
                    self._limits.leave(self._address)
                # its parts refer to it, so they would all stay in memory until the garbage collector finds them
                if wrapper is not None:
                    wrapper.free()
                self.__dict__.clear()

    def _is_called(self, client: str) -> bool:
        """Whether the address of a client means this machine, though this network namespace does not have it."""
        return self._only_own or client in self._called

    async def _turn(self) -> None:
        """Wait until this client may begin some work; a client on this machine does not wait."""
        if self._limits is not None and self._address:
            await self._limits.turns.take(self._address)

    async def _turn_of_request(self) -> None:
        """Wait as :meth:`_turn` does. A stop closes idle connections at once, and this one is not idle meanwhile."""
        if self._address:
            with self._timer.busy():
                await self._turn()

    async def _negotiate(self, tls: PeerTls, client: str, *, local: bool) -> None:
        within, terminated = self.config.keep_alive_timeout, self.context.terminated.wait
        found = await negotiate(self._plain.socket, tls, client, local=local, within=within, terminated=terminated)
        if found.secure is not None:
            self._secure = found.secure
            self.stream = cast("trio.SSLStream[trio.SocketStream]", found.secure)
            self._idle_connections = None  # they read plain bytes
        if found.refused:
            self.app = HealthOnly(self.app)
            self._fast_path = self._idle_connections = None
        self._first = found.first

    async def _read(self, link: Link) -> None:
        timer, fast_path, idle_connections = self._timer, self._fast_path, self._idle_connections
        sock, secure = self._plain.socket, self._secure
        self._idle = idle = IdleConnection(sock, timer, link.local, self.context.terminated.is_set)
        timer.touch()
        if secure is None and not self._first:
            # the first request usually arrives with the connection, and a client may want no second one
            self._first = _received(sock)
        try:
            while True:
                if not self._first:
                    timer.watch(self._task_group)
                waits = idle_connections is not None and timer.idle and self._at_rest()
                try:
                    if self._first:
                        data, self._first = self._first, b""
                    elif secure is not None:
                        data = await secure.receive_some(RECEIVE)
                    else:
                        data = await (
                            idle_connections.next_request(idle) if idle_connections and waits else _receive(sock)
                        )
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, Truncated):
                    break
                # the end of a connection needs a turn too, because thousands of ends are as much work as their starts
                await (self._turn_of_request() if data else self._turn())
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
                if not data or (timer.idle and self.context.terminated.is_set()):
                    break
            await self.protocol.handle(Closed())
        finally:
            timer.end()

    async def _close_idle(self) -> None:
        if self._idle_connections is not None and self._idle is not None:
            self._idle_connections.dismiss(self._idle)
        await self._initiate_server_close()

    def _at_rest(self) -> bool:
        """Whether hypercorn waits for a new request and has no byte of it."""
        if not self._wrapper.is_used:
            return True
        protocol = self._wrapper.protocol
        if protocol.stream is not None:
            return False
        http = protocol.connection
        return (
            isinstance(http, h11.Connection)
            and http.our_state is h11.IDLE
            and http.their_state is h11.IDLE
            and not http.trailing_data[0]
        )

    async def _end_answer(self) -> None:
        """Go on with the answer after the client has closed its sending direction (RFC 9112, 9.6).

        A client that has left looks the same until bytes are sent to it. So the answer goes on only while the client
        takes some bytes within each second.
        """
        seen = -1
        while self._is_answering() and self._sent != seen:
            seen, self._answered = self._sent, trio.Event()
            with trio.move_on_after(_LINGER):
                await self._answered.wait()

    async def _close(self) -> None:
        """Close the connection gracefully: read the bytes that the client still sends, then close.

        Unread bytes would cause a reset, which can overtake the answer (RFC 9112, 9.6).
        """
        try:
            if self._secure is not None:
                self._secure.say_end()
            await self._drain(self._plain.socket)
        finally:
            # not hypercorn's way, which shuts the socket down again and costs three turns of the event loop
            (self._secure or self._plain.socket).close()

    async def _drain(self, sock: trio.socket.SocketType) -> None:
        # not while another task reads from the socket, and a client that has left needs no draining
        with suppress(OSError, ValueError, trio.BusyResourceError, trio.ClosedResourceError):
            sock.shutdown(socket.SHUT_WR)
            with trio.move_on_after(_LINGER):
                for _ in range(_DRAIN_READS):
                    if not await _receive(sock):
                        return

    def _is_answering(self) -> bool:
        """Whether hypercorn answers a request that has been received completely."""
        if not self._wrapper.is_used or self._wrapper.protocol.stream is None:
            return False
        return self._wrapper.protocol.connection.their_state in (h11.DONE, h11.MUST_CLOSE)

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            # shielded, because this closes the connection, and the application may be cancelled by the client's end
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
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            # the client has left or does not read, so all work for it is cancelled
            self._life.cancel()
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            await trio.aclose_forcefully(self.stream)
            raise


def _address(family: int, address: tuple[str, int]) -> tuple[str, int] | None:
    """Host and port of a TCP socket's address."""
    found = parse_socket_addr(family, address)
    # the form in which an IPv6 socket shows IPv4 addresses is no other name of theirs outside of this module
    return (unmapped_host(found[0]), found[1]) if found is not None and family == socket.AF_INET6 else found


def _received(sock: trio.socket.SocketType) -> bytes:
    """Return the bytes that have arrived; none if there are none, or if reading fails, as it will for the next read."""
    with suppress(OSError):
        return os.read(sock.fileno(), RECEIVE)
    return b""


async def _receive(sock: trio.socket.SocketType) -> bytes:
    while True:
        if sock.fileno() < 0:  # the socket was closed after a refusal; Trio would take -1 for a descriptor
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

"""Serves an ASGI application on a listening socket until a stop is requested.

This is hypercorn's Trio worker, reduced to one port and to the connections of
:mod:`spegel_consul.http.server.connection`. A new rule about the start or the graceful stop of a server belongs here.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, Framework, LifespanState
from hypercorn.utils import wrap_app

from spegel_consul.http.peer_tls import PeerTls
from spegel_consul.http.server.accept import accept, listen_for_own
from spegel_consul.http.server.connection import Connection, FastPath
from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.http.server.idle_connections import IdleConnections

DRAIN_TIMEOUT = 10.0
"""Seconds that transfers in flight may take after a stop was requested."""

KEEP_ALIVE = 100.0
"""Seconds after which an idle connection is closed. Go's transport, which all supported runtimes use, closes its own
idle connections after 90 s, so it never uses a connection that is just being closed here."""


def _config(keep_alive: float) -> Config:
    config = Config()
    config.loglevel = "CRITICAL"
    config.keep_alive_timeout = keep_alive
    config.keep_alive_max_requests = 1 << 62
    config.include_server_header = False
    return config


async def serve(
    app: Framework,
    sock: socket.socket,
    *,
    stop: Callable[[], Awaitable[object]],
    fast_path: FastPath | None = None,
    tls: PeerTls | None = None,
    limits: ConnectionLimits | None = None,
    called: frozenset[str] = frozenset(),
    only_own: bool = False,
    drain_timeout: float = DRAIN_TIMEOUT,
    keep_alive: float = KEEP_ALIVE,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the ASGI application ``app`` on ``sock``, a listening socket that is closed at the end.

    Connections of this machine have a queue of their own, if the kernel supports that.

    Requests are offered to ``fast_path`` first, if there is one.
    ``limits``: the connection limits for clients on other machines.
    ``called``: addresses that clients use for this server, even if this network namespace does not have them.
    ``only_own``: whether all clients count as clients of this machine, because no other machine reaches the socket.
    When ``stop()`` returns, no further connection is accepted, idle ones are closed, and requests in flight have
    ``drain_timeout`` seconds to end.
    """
    config = _config(keep_alive)
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    lifespan_state: LifespanState = {}
    lifespan = Lifespan(wrapped, config, lifespan_state)
    context = WorkerContext(None)
    idle_connections = IdleConnections(fast_path.at_once) if fast_path is not None else None
    state = ConnectionState(lifespan_state)

    async def connection(sock: socket.socket) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            await Connection(
                wrapped,
                config,
                context,
                state,
                fast_path,
                idle_connections,
                tls,
                limits,
                called,
                stream,
                only_own=only_own,
            ).run()
        finally:
            stream.socket.close()

    async with trio.open_nursery() as lifespan_nursery:
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        if idle_connections is not None:
            await lifespan_nursery.start(idle_connections.run)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                own = listen_for_own(sock, called)
                for each in filter(None, (own, sock)):
                    await accepting.start(accept, each, lambda made: connections.start_soon(connection, made))
                task_status.started()
                await stop()
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + drain_timeout
        await lifespan.wait_for_shutdown()
        lifespan_nursery.cancel_scope.cancel()

# hypercorn's Trio worker with two of its parts replaced.
#
# The connection: hypercorn sends under a shield without a timeout, so one client that stops reading would
# keep the process from stopping; ours gives up when it is cancelled and then closes the connection, because a
# half-sent frame can't be continued.  And whatever a connection raises ends here: hypercorn lets exception
# groups through, and one peer's reset must not take the server down.
#
# The protocol: requests that h11 refuses get the error body that registry clients know how to show.
#
# Everything else - parsing, keep-alive, HTTP/2, the application's life - is hypercorn's.

"""Serve an ASGI application on a listening socket until told to stop."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, Framework, LifespanState
from hypercorn.utils import parse_socket_addr, wrap_app

log = structlog.get_logger(__name__)

DRAIN_TIMEOUT = 10.0
"""Seconds that transfers in flight may take after a stop was asked for."""

_REASONS = {400: "the request is not valid HTTP", 431: "the request's header fields are too large"}


class _Protocol(H11Protocol):
    async def _send_error_response(self, status_code: int) -> None:
        message = _REASONS.get(status_code, "the request can't be answered")
        body = json.dumps({"errors": [{"code": "UNSUPPORTED", "message": message}]}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        all_headers = list(chain(headers, self.config.response_headers("h11")))
        await self._send_h11_event(h11.Response(status_code=status_code, headers=all_headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class _Wrapper(ProtocolWrapper):
    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        task_group: TaskGroup,
        state: ConnectionState,
        ssl: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Callable[[Event], Awaitable[None]],
        alpn_protocol: str | None = None,
    ) -> None:
        super().__init__(app, config, context, task_group, state, ssl, client, server, send, alpn_protocol)
        if isinstance(self.protocol, H11Protocol):
            self.protocol = _Protocol(app, config, context, task_group, state, ssl, client, server, send)


class _Connection(TCPServer):
    async def run(self) -> None:
        try:
            sock = self.stream.socket
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as group:
                self._task_group = group
                self.protocol = _Wrapper(
                    self.app,
                    self.config,
                    self.context,
                    group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                    "http/1.1",
                )
                await self.protocol.initiate()
                await self.idle_task.restart(group, self._idle_timeout)
                await self._read_data()
        except Exception as exc:
            # a group of resets and closed resources is how a client's departure looks from here
            log.debug("connection ended", error=_leaf(exc))
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            # the application may be cancelled because its client is gone, and this closes the connection for good
            with trio.CancelScope(shield=True):
                await super().protocol_send(event)
            return
        try:
            async with self.send_lock:
                await self.stream.send_all(event.data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.protocol.handle(Closed())
        except trio.Cancelled:
            await trio.aclose_forcefully(self.stream)
            raise


def _leaf(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return repr(exc)


def _config(drain_timeout: float) -> Config:
    config = Config()
    config.loglevel = "CRITICAL"
    config.graceful_timeout = drain_timeout
    # Go's transport, which every runtime here uses, drops its idle connections after 90 s
    config.keep_alive_timeout = 100.0
    config.keep_alive_max_requests = 1 << 62
    config.include_server_header = False
    return config


async def serve(
    app: Framework,
    sock: socket.socket,
    *,
    stop: Callable[[], Awaitable[object]],
    drain_timeout: float = DRAIN_TIMEOUT,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the ASGI application ``app`` on ``sock``, a listening socket that is closed at the end.

    When ``stop()`` returns, no connection is accepted any more, idle ones are closed, and requests in
    flight have ``drain_timeout`` seconds to end.
    """
    config = _config(drain_timeout)
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    lifespan_state: LifespanState = {}
    lifespan = Lifespan(wrapped, config, lifespan_state)
    context = WorkerContext(None)
    handler = partial(_Connection, wrapped, config, context, ConnectionState(lifespan_state))
    async with trio.open_nursery() as lifespan_nursery:
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
                accepting.start_soon(partial(trio.serve_listeners, handler, [listener], handler_nursery=connections))
                task_status.started()
                await stop()
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + drain_timeout
        await lifespan.wait_for_shutdown()
        lifespan_nursery.cancel_scope.cancel()

"""hypercorn's HTTP/1.1, changed where a registry must answer differently.

* Requests that h11 refuses get the error body that registry clients can show.
* HTTP/2 and websocket are not served, so an upgrade to them is ignored.
* A target may be a whole URL, which a client sends if it takes this server for its proxy, and which every server has to
  accept (RFC 9112, 3.2.2).
* A request that frames its body in two ways at once is refused and its connection closed, because the following bytes
  are a request for one of two parsers and a body for the other (RFC 9112, 6.1).
* Methods in lower case and other versions are refused, because hypercorn takes `get` for GET, though methods are
  case-sensitive (RFC 9110, 9.1), and answers any version that h11 can read.
* If a body turns out to be malformed while its request is being answered, the answer goes on, and the connection ends
  with it. Otherwise the order in which tasks run would decide whether the answer is sent.
* An application may send interim answers (103, the ASGI extension ``http.response.early_hint``), which hypercorn leaves
  out of HTTP/1.1. Browsers ask for that; here, only peers that know of them are sent any.

A new rule belongs here if it concerns requests that hypercorn parses, and not one application.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from itertools import chain
from typing import Any

import h11
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    Scope,
)

_REASONS = {
    400: "the request is not valid HTTP",
    431: "the request's header fields are too large",
    501: "the method is not known: methods are case-sensitive, as in GET",
    505: "only HTTP/1.1 and HTTP/1.0 are supported",
}
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(.*)\Z", re.IGNORECASE)
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Http11(H11Protocol):
    """One connection's requests and answers. ``turn()`` is awaited before each request."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        task_group: TaskGroup,
        connection_state: ConnectionState,
        ssl: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Callable[[Event], Awaitable[None]],
        turn: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(
            self._with_interim(app), config, context, task_group, connection_state, ssl, client, server, self._pass_on
        )
        self._send = send
        self._turn = turn

    def _with_interim(self, app: AppWrapper) -> AppWrapper:
        """Return ``app`` with interim answers, which are sent at once."""

        async def wrapped(
            scope: Scope,
            receive: ASGIReceiveCallable,
            send: ASGISendCallable,
            sync_spawn: Callable[..., Any],
            call_soon: Callable[..., Any],
        ) -> None:
            async def with_interim(event: ASGISendEvent) -> None:
                if event["type"] == "http.response.early_hint":
                    if takes_interim:
                        await self._send_h11_event(h11.InformationalResponse(status_code=103, headers=[]))
                else:
                    await send(event)

            # HTTP/1.0 has none, so its clients must not be sent any (RFC 9110, 15.2)
            takes_interim = scope["type"] == "http" and scope["http_version"] != "1.0"
            if scope["type"] == "http":
                scope["extensions"]["http.response.early_hint"] = {}
            await app(scope, receive, with_interim, sync_spawn, call_soon)

        return wrapped

    async def _pass_on(self, event: Event) -> None:
        if not (isinstance(event, Closed) and self._is_spoiled()):
            await self._send(event)

    def _is_spoiled(self) -> bool:
        """Whether the request that is being answered has a malformed body."""
        return self.stream is not None and self.connection.their_state is h11.ERROR

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay with HTTP/1.1, both for prior knowledge of HTTP/2 and for an upgrade (RFC 9113, 3.3).

        An answer that can't be completed has to be cut. With HTTP/2, hypercorn cuts neither the stream nor the
        connection, so the client would wait for ever.
        """

    async def _create_stream(self, request: h11.Request) -> None:
        await self._turn()
        names = {name for name, _ in request.headers}
        if status := _refusal(request, names):
            await self._send_error_response(status, has_body=request.method != b"HEAD")
            await self.send(Closed())
            return
        if b"upgrade" in names:
            # a server may ignore Upgrade (RFC 9110, 7.8)
            request = _changed(request, request.target, [each for each in request.headers if each[0] != b"upgrade"])
        if absolute := _ABSOLUTE.match(request.target):
            authority, target = absolute.groups()
            # the authority of the target takes precedence over Host (RFC 9112, 3.2.2)
            headers = [(b"host", authority), *(each for each in request.headers if each[0] != b"host")]
            request = _changed(request, target if target.startswith(b"/") else b"/" + target, headers)
        await super()._create_stream(request)

    async def _send_error_response(self, status_code: int, *, has_body: bool = True) -> None:
        if self._is_spoiled():
            return
        message = _REASONS.get(status_code, "the request can't be answered")
        body = json.dumps({"errors": [{"code": "UNSUPPORTED", "message": message}]}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        all_headers = list(chain(headers, self.config.response_headers("h11")))
        await self._send_h11_event(h11.Response(status_code=status_code, headers=all_headers))
        if has_body:
            await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


def _refusal(request: h11.Request, names: set[bytes]) -> int:
    """Return the status with which to refuse a request that h11 accepts, or 0."""
    if not request.http_version.startswith(b"1."):
        return 505
    if names >= _FRAMING:
        return 400
    return 0 if request.method in _METHODS else 501


def _changed(request: h11.Request, target: bytes, headers: list[tuple[bytes, bytes]]) -> h11.Request:
    return h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)


class Wrapper(ProtocolWrapper):
    """hypercorn's choice of a protocol, which is always :class:`Http11` here.

    The parser is made for the first bytes that it gets, because many connections have requests of the fast path only.
    """

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
        turn: Callable[[], Awaitable[None]],
    ) -> None:
        # without super(), because hypercorn's constructor makes a parser at once
        self._make = partial(Http11, app, config, context, task_group, state, ssl, client, server, send, turn)

    @cached_property
    def protocol(self) -> Http11:  # type: ignore[override]
        """The parser."""
        return self._make()

    @property
    def is_used(self) -> bool:
        """Whether the parser has been made."""
        return "protocol" in self.__dict__

    async def handle(self, event: Event) -> None:
        """Pass ``event`` to the parser; the end of a connection is nothing to a parser that was not made."""
        if self.is_used or (isinstance(event, RawData) and event.data):
            await self.protocol.handle(event)

    def free(self) -> None:
        """Free the parser at the end of its connection; its parts refer to it."""
        if self.is_used:
            self.protocol.__dict__.clear()

"""Whether a connection is encrypted, found out by its first byte, and by whom it comes.

Clients with TLS and clients without share one port, because a second port would have to be opened, published and
announced. A TLS client begins with a handshake record, and no HTTP request begins with that byte. The first bytes are
read as any request is, without a system call more, and wait as long as any idle connection, because a runtime may open
a connection ahead of its need. They are passed on to the side that they belong to.

If the kernel may encrypt the connection, OpenSSL must read all bytes of TLS from the socket. So a look at the first
byte of another machine leaves it there; that is one system call more for plain text.

A client on another machine that speaks plain text is served (``Encryption.PREFER``), or refused with a sentence that
says why (``REQUIRE``). Even then health is answered, because load balancers and monitoring ask for it from elsewhere.

A new rule about the choice between TLS and plain text for accepted connections belongs here.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio
from hypercorn.typing import AppWrapper, ASGIReceiveCallable, ASGISendCallable, Scope

from spegel_consul.http.peer_tls import OTHER_SERVICE, Encryption, PeerTls, fault_of
from spegel_consul.http.server.idle_connections import RECEIVE
from spegel_consul.zerocopy.encrypted.kernel_socket import accept_in_kernel
from spegel_consul.zerocopy.encrypted.kernel_tls import KERNEL
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket

log = structlog.get_logger(__name__)

HANDSHAKE = 10.0
"""Seconds that a TLS handshake may take."""

_HANDSHAKE_RECORD = 0x16
_HEALTH = frozenset({"/readyz", "/livez"})
_REFUSAL = json.dumps({"errors": [{"code": "DENIED", "message": "other machines are served over TLS only"}]}).encode()


class Refused(Exception):
    """The connection is to be closed without an answer; the message says why."""


class Negotiated:
    """The result: ``secure`` is the encrypted socket or None, ``first`` the bytes of a plain request, ``refused``
    whether only health is answered."""

    __slots__ = ("first", "refused", "secure")

    def __init__(self, secure: SecureSocket | None = None, first: bytes = b"", *, refused: bool = False) -> None:
        self.secure = secure
        self.first = first
        self.refused = refused


async def negotiate(
    sock: trio.socket.SocketType,
    tls: PeerTls,
    client: str,
    *,
    local: bool,
    within: float,
    terminated: Callable[[], Awaitable[object]],
) -> Negotiated:
    """Read the first bytes, and shake hands if they are TLS. ``within``: seconds until the first byte.

    Raises Refused, trio.TooSlowError if the handshake takes too long, and OSError.
    """
    if tls.encryption is Encryption.ALL:
        return Negotiated(await _verified(sock, tls, client, in_kernel=KERNEL.wanted))
    in_kernel = not local and KERNEL.wanted  # a runtime that has TLS though it needs none is not worth the look
    first = await _first_bytes(sock, within, terminated, leave_tls=in_kernel)
    if first[0] == _HANDSHAKE_RECORD:
        secure = await _verified(sock, tls, client, b"" if in_kernel else first, in_kernel=in_kernel)
        if not local:
            tls.links.note(client, True)
        return Negotiated(secure)
    refused = not local and tls.encryption is Encryption.REQUIRE
    if not (local or refused):
        tls.links.note(client, False)
    return Negotiated(first=first, refused=refused)


async def _verified(
    sock: trio.socket.SocketType, tls: PeerTls, client: str, first: bytes = b"", *, in_kernel: bool
) -> SecureSocket:
    """Shake hands with a client whose certificate is that of a peer; one that is not is reported."""
    try:
        secure = await _encrypted(sock, tls, first, in_kernel=in_kernel)
    except ssl.SSLCertVerificationError as exc:  # not an alert, because a client that is no peer sends one too
        if (fault := fault_of(exc)) is not None:
            tls.links.refused(client, fault)
        raise
    if not tls.accepts(secure.certificate()):
        tls.links.refused(client, OTHER_SERVICE)
        raise Refused("the client has the certificate of another service")
    return secure


async def _encrypted(
    sock: trio.socket.SocketType, tls: PeerTls, first: bytes = b"", *, in_kernel: bool
) -> SecureSocket:
    context = tls.server()
    if context is None:
        raise Refused("this node has no certificate")
    with trio.fail_after(HANDSHAKE):
        if in_kernel and (accepted := await accept_in_kernel(sock, context)) is not None:
            return accepted
        secure = SecureSocket(sock, context, server_side=True, first=first)
        await secure.do_handshake()
    return secure


async def _first_bytes(
    sock: trio.socket.SocketType,
    within: float,
    terminated: Callable[[], Awaitable[object]],
    *,
    leave_tls: bool,
) -> bytes:
    """Wait for the first bytes. Raises Refused if the client sends none, or if the server stops meanwhile.

    ``leave_tls``: leave bytes of TLS in the socket, and return only one of them.
    """
    with trio.move_on_after(within) as waiting:
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await terminated()
                waiting.cancel()

            nursery.start_soon(leave)
            while True:
                await trio.lowlevel.wait_readable(sock)
                if leave_tls:
                    first = await sock.recv(1, socket.MSG_PEEK)
                    if first and first[0] == _HANDSHAKE_RECORD:
                        break
                try:
                    first = os.read(sock.fileno(), RECEIVE)
                    break
                except BlockingIOError:
                    continue
            nursery.cancel_scope.cancel()
        if first:
            return first
    raise Refused("the client sent nothing")


class HealthOnly:
    """An application that answers health, and refuses everything else because the connection is not encrypted."""

    def __init__(self, app: AppWrapper) -> None:
        self._app = app

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        """As hypercorn's wrappers of applications are called."""
        if scope["type"] != "http" or scope["path"] in _HEALTH:
            await self._app(scope, receive, send, sync_spawn, call_soon)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REFUSAL))]
        await send(
            {
                "type": "http.response.start",
                "status": 403,
                "headers": [*headers, (b"connection", b"close")],
                "trailers": False,
            }
        )
        await send({"type": "http.response.body", "body": _REFUSAL, "more_body": False})

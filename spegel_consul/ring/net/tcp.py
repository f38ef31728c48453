"""TCP sockets of a host: listening, and detection of vanished hosts."""

from __future__ import annotations

import socket

import trio

from spegel_consul.error_words import in_words
from spegel_consul.peers import RingError, host_port


def listen(bind: tuple[str, int] | socket.socket) -> socket.socket:
    """A non-blocking, listening socket at ``(IP address, port)``, or ``bind`` itself. Raises RingError."""
    if isinstance(bind, socket.socket):
        sock = bind
    else:
        host, port = bind
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            # not SO_REUSEPORT, which py-libp2p sets, because a second node on the port is an error
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        except OSError as exc:
            sock.close()
            raise RingError(f"the ring can't listen on {host_port(host, port)}: {in_words(exc)}") from exc
    try:
        sock.listen(1024)
    except OSError as exc:
        sock.close()
        raise RingError(f"the ring can't listen on {bind}: {in_words(exc)}") from exc
    sock.setblocking(False)
    return sock


def detect_vanished_host(stream: trio.SocketStream) -> None:
    """Have the kernel end the connection about 20 s after the other host vanished without closing it."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)

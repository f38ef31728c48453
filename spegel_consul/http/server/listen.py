"""Listening sockets, and the addresses of flags.

Sockets are bound before any other part of the sidecar starts, so that a port in use is one clear line and an exit, not
a half-started node that has registered itself in Consul already.

A new rule about the address of a listening socket belongs here.
"""

from __future__ import annotations

import errno
import socket

from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import host_port

BACKLOG = 1024
"""Length of the kernel's queue of connections that are not yet accepted."""


class ListenError(Exception):
    """Listening at the address failed; the message names the address and the remedy."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """``host`` is an IP address or host name, empty for all interfaces; ``port`` 0 lets the kernel choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Parse ``host:port``, ``:port`` (all interfaces) or ``[ipv6]:port``. Raises ValueError."""
        host, colon, port_text = text.rpartition(":")
        if not colon or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
            raise ValueError(f"{text!r} is not an address: expected host:port, :port or [ipv6]:port, port 0 to 65535")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            try:
                socket.inet_pton(socket.AF_INET6, host)
            except OSError:
                raise ValueError(f"{text!r} is not an address: {host!r} in brackets is not IPv6") from None
        elif ":" in host or "[" in host or "]" in host:
            raise ValueError(f"{text!r} is not an address: write IPv6 in brackets, as in [::1]:{port_text}")
        elif any(c.isspace() or c == "/" for c in host):
            raise ValueError(f"{text!r} is not an address: {host!r} is not a host")
        return cls(host, int(port_text))

    def __str__(self) -> str:
        return host_port(self.host, self.port)


def listen(address: ListenAddress, flag: str) -> socket.socket:
    """Return a listening, non-blocking TCP socket. The message of ListenError names ``flag``.

    "All interfaces" means IPv6 and IPv4 on one socket if the kernel has IPv6, else IPv4.
    """
    if address.host:
        try:
            candidates = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise ListenError(f"{flag} {address}: host can't be resolved: {in_words(exc)}") from None
        families = [(info[0], info[4]) for info in candidates[:1]]
    else:
        families = [(socket.AF_INET6, ("::", address.port)), (socket.AF_INET, ("0.0.0.0", address.port))]  # noqa: S104
    for family, sockaddr in families:
        last = (family, sockaddr) == families[-1]
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as exc:
            if last:
                raise _failed(address, flag, exc) from None
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and not address.host:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(sockaddr)
            sock.listen(BACKLOG)
        except OSError as exc:
            sock.close()
            if last or exc.errno == errno.EADDRINUSE:
                raise _failed(address, flag, exc) from None
            continue
        sock.setblocking(False)
        return sock
    raise AssertionError("unreachable: the last family returns or raises")


def _failed(address: ListenAddress, flag: str, exc: OSError) -> ListenError:
    if exc.errno == errno.EADDRINUSE:
        return ListenError(f"{flag} {address}: address already in use; stop the other process or choose another port")
    if exc.errno == errno.EACCES:
        return ListenError(f"{flag} {address}: permission denied; ports below 1024 need CAP_NET_BIND_SERVICE")
    if exc.errno == errno.EADDRNOTAVAIL:
        return ListenError(f"{flag} {address}: this machine does not have that address")
    return ListenError(f"{flag} {address}: {exc.strerror or exc}")

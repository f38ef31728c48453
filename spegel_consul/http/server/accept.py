"""Accepting connections: many for each wake-up, and those of this machine from a queue of their own.

The kernel keeps connections that are not yet accepted in a queue of the listening socket. If the queue is full, the
kernel drops new connections: the client tries again after one second, then after two more. A client on another machine
that connects faster than this process accepts fills the queue for all, the node's own runtime and Consul's check
included. So the port has a second listening socket, whose queue gets only the connections of this machine. The two
sockets form a SO_REUSEPORT group (socket(7)), in which a classic BPF program chooses by the addresses of the first
packet.

SO_BINDTODEVICE with ``lo`` is not enough, because a connection to the node's own address counts as one of that
address's interface. The option SO_REUSEPORT is set after the first socket is bound, so that a port of another process
is still an error.

At the limit of open files nothing can be accepted, and a client would wait in the queue for as long as its own timeout
allows. So each listening socket has a reserve of one file. It is closed to accept each waiting connection and to close
it at once: the node's own runtime then asks the upstream registry, and a peer asks another peer.

A new rule belongs here if it applies before the first byte of a connection is read, and to its listening socket.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

import structlog
import trio

from spegel_consul.error_words import in_words
from spegel_consul.http.server.listen import BACKLOG

log = structlog.get_logger(__name__)

ROUND = 32
"""Largest number of connections that one wake-up accepts before other tasks may run."""

_SO_ATTACH_REUSEPORT_CBPF = 51
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_CAPACITY = _NO_FILES | {errno.ENOMEM, errno.ENOBUFS}
_BACK_OFF = 0.1  # seconds to wait for free files or memory
_WARN_EVERY = 60.0  # seconds

# Opcodes of classic BPF (linux/bpf_common.h); offsets are those of the IP header.
_LOAD_WORD, _LOAD_BYTE, _TO_X, _AND = 0x20, 0x30, 0x07, 0x54
_IF_EQUAL, _IF_EQUAL_X, _RETURN = 0x15, 0x1D, 0x06
_NET = 0xFFF00000
_LOOPBACK = 127 << 24

OTHERS, OWN = 0, 1
"""Return values of the program: the number of the socket in its group."""

Instruction = tuple[int, int, int, int]
"""Opcode, jump if true, jump if false, constant."""


def own_connections(called: Iterable[str] = ()) -> list[Instruction]:
    """Return the program that gives OWN for a packet of this machine.

    Such a packet has equal source and destination addresses, or a destination in 127.0.0.0/8, or an IPv4 source address
    in ``called``, by which a port mapping has replaced this machine's own address.
    """
    mapped = [int(address) for address in map(ipaddress.ip_address, called) if address.version == 4]
    compared = 4 * 4  # instructions, four for each word of the two addresses
    v6: list[Instruction] = []
    for word in range(4):
        to_others = compared + 1 - len(v6) - 4
        v6 += [
            (_LOAD_WORD, 0, 0, _NET + 8 + 4 * word),
            (_TO_X, 0, 0, 0),
            (_LOAD_WORD, 0, 0, _NET + 24 + 4 * word),
            (_IF_EQUAL_X, 0, to_others, 0),
        ]
    v4: list[Instruction] = [(_LOAD_WORD, 0, 0, _NET + 12)]
    v4 += [(_IF_EQUAL, len(mapped) + 4 - at, 0, address) for at, address in enumerate(mapped)]
    v4 += [
        (_TO_X, 0, 0, 0),
        (_LOAD_WORD, 0, 0, _NET + 16),
        (_IF_EQUAL_X, 2, 0, 0),
        (_AND, 0, 0, 0xFF000000),
        (_IF_EQUAL, 0, 1, _LOOPBACK),
    ]
    answers: list[Instruction] = [(_RETURN, 0, 0, OWN), (_RETURN, 0, 0, OTHERS)]
    v4 += answers
    return [(_LOAD_BYTE, 0, 0, _NET), (_AND, 0, 0, 0xF0), (_IF_EQUAL, 0, len(v4), 0x40), *v4, *v6, *answers]


def listen_for_own(sock: socket.socket, called: Iterable[str] = ()) -> socket.socket | None:
    """Open a second listening socket at the address of ``sock``, for connections of this machine.

    Return None if the kernel has no SO_REUSEPORT groups with programs (Linux before 4.5, some sandboxes).
    ``called``: see :func:`own_connections`.
    """
    own = socket.socket(sock.family, socket.SOCK_STREAM)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        for each in (sock, own):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind(sock.getsockname())
        own.listen(BACKLOG)
        program = own_connections(called)
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
        own.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("@HP", len(program), ctypes.addressof(code))
        )
        own.setblocking(False)
    except OSError as exc:
        own.close()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        log.debug("connections of this machine have no queue of their own", error=in_words(exc))
        return None
    return own


class _Reserve:
    """One open file. It is closed to accept a connection at the limit of open files, and opened again afterwards."""

    def __init__(self) -> None:
        self._fd = -1
        self.open()

    def open(self) -> None:
        """Open the file, if it is not open and the limit allows it."""
        if self._fd < 0:
            with suppress(OSError):
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _close_waiting(sock: socket.socket, reserve: _Reserve) -> int:
    """Accept up to ROUND connections at the limit of open files, and close them; return their number."""
    reserve.close()
    closed = 0
    with suppress(OSError):  # the queue is empty, or another thread took the file
        while closed < ROUND:
            sock.accept()[0].close()
            closed += 1
    reserve.open()
    return closed


async def accept(
    sock: socket.socket,
    handle: Callable[[socket.socket], object],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept connections at ``sock`` and call ``handle``, which must not block, with each, until cancelled.

    At the limit of open files, connections wait for a tenth of a second, and are closed if the shortage goes on. The
    log has one event a minute about it. Closes ``sock`` at the end.
    """
    warn_at, closed, is_short = 0.0, 0, False
    reserve = _Reserve()
    task_status.started()
    try:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                for _ in range(ROUND):
                    connection, _address = sock.accept()
                    connection.setblocking(False)
                    handle(connection)
            except BlockingIOError:
                is_short = False  # not before, because with a file now and then the queue would hardly get shorter
                reserve.open()  # if a thread took its file
                continue
            except OSError as exc:
                if exc.errno not in _CAPACITY:
                    continue  # an error of one connection only (accept(2))
                now_closed = _close_waiting(sock, reserve) if is_short and exc.errno in _NO_FILES else 0
                is_short = True
                closed += now_closed
                if (now := trio.current_time()) >= warn_at:
                    warn_at = now + _WARN_EVERY
                    log.error("no connection can be accepted now", error=in_words(exc), closed=closed)
                    closed = 0
                if now_closed < ROUND:
                    await trio.sleep(_BACK_OFF)
    finally:
        reserve.close()
        trio.lowlevel.notify_closing(sock)
        sock.close()

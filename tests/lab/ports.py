"""Ports for programs that a test starts on this machine's loopback.

The kernel gives the ports from 32768 on to connections, of this run's other processes too. So a port of those that was
free a moment ago may be taken when the program binds it.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

_OURS = range(12_000, 30_000)
_dice = random.SystemRandom()  # other processes of a run must not try the same ones


def free_ports(count: int) -> list[int]:
    """Return different ports that are free on 127.0.0.1, for TCP and UDP."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            port = _dice.choice(_OURS)
            tcp = held.enter_context(socket.socket())
            udp = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found


def free_port() -> int:
    """Return one such port."""
    return free_ports(1)[0]

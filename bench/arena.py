# Where the measuring happens: loopback of a network namespace that nobody else uses, with reno as congestion control
# (bbr, the default of some machines, paces loopback and by that changes the ratios themselves), one core for the
# servers and one for the clients.
#
# The namespace has no name: it belongs to this process and its children, and is gone when the last of them is, so a
# run that is killed leaves nothing behind.

"""A network namespace and two cores for one run."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


class ArenaError(Exception):
    """This machine can't be measured on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Arena:
    """``server_core`` is where what is measured runs, ``client_core`` where everything else does."""

    server_core: int
    client_core: int

    def description(self) -> dict[str, object]:
        """What a reader of the figures should know of the machine."""
        return {
            "kernel": ".".join(platform.release().split(".")[:2]),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "server_core": self.server_core,
            "client_core": self.client_core,
            "congestion_control": _CONGESTION.read_text().strip(),
            "python": platform.python_version(),
        }


def enter() -> Arena:
    """Move this process, and what it starts from now on, into the arena. Raises ArenaError."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ArenaError("two cores are needed, one for the servers and one for the clients")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise ArenaError(f"a network namespace can't be made ({reason}): run it as root")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    try:
        _CONGESTION.write_text("reno")
    except OSError as exc:
        raise ArenaError(f"{_CONGESTION} can't be set to reno: {exc.strerror}") from None
    os.sched_setaffinity(0, {cores[1]})
    return Arena(cores[0], cores[1])


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()

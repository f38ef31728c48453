"""The interface of an address, and whether this process runs in a container.

Interfaces are asked of the kernel, and a container is recognized by a marker file. A new marker belongs here.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915
_CONTAINER_MARKERS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def interface_of(address: str) -> str | None:
    """The name of the interface with this address, or None if this machine has none."""
    wanted = ipaddress.ip_address(address)
    if wanted.version == 6:
        # netdevice(7) has no call for it; the kernel's table has one line for each address
        try:
            lines = Path("/proc/net/if_inet6").read_text().splitlines()
        except OSError:
            return None
        for line in lines:
            words = line.split()
            if len(words) == 6 and ipaddress.IPv6Address(bytes.fromhex(words[0])) == wanted:
                return words[5]
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no address
            if ipaddress.IPv4Address(answer[20:24]) == wanted:
                return name
    return None


def in_container() -> bool:
    """Whether the marker file of Docker or Podman exists."""
    return any(marker.exists() for marker in _CONTAINER_MARKERS)

"""The interface of an address, and whether this process runs in a container.

A container is recognized by a marker file. A new marker belongs here.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from spegel_consul.preflight.node_address import local_addresses

_CONTAINER_MARKERS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def interface_of(address: str) -> str | None:
    """The name of the interface with this address, or None if this machine has none."""
    wanted = ipaddress.ip_address(address)
    return next((local.interface for local in local_addresses() if local.ip == wanted), None)


def in_container() -> bool:
    """Whether the marker file of Docker or Podman exists."""
    return any(marker.exists() for marker in _CONTAINER_MARKERS)

"""The limit of open files, and how it is shared.

The number of open files of this process is limited, and each connection has one or several. So each port gets a share
for the connections of other machines, and a reserve is left for the node's own runtime, the store, Consul and the
transfers of the runtime. Without shares, strangers at one port could take the files of all.

    reserve    RESERVED
    ring       half of the rest, up to RING_FILES: a connection of the ring has one file and lasts for hours
    http       all others, for the registry and the metrics port; a connection that sends a blob has up to four

A new user of many files gets its share here. Rules about *which* connections get the files of a share belong to the
owner of the share: :mod:`spegel_consul.http.server.connection_limits` and :mod:`spegel_consul.ring.net.ring_files`.
"""

from __future__ import annotations

import resource

import structlog

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.ring.net.ring_files import RING_FILES

log = structlog.get_logger(__name__)

MOST_FILES = 65_536
"""Largest number of files to ask for; each transfer has seven."""

ENOUGH_FILES = 16_384
"""Number of files that the connections of the ring and the registry need; fewer give a warning."""

RESERVED = 128
"""Files that the connections of other machines don't get."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Numbers of files for the connections of other machines: of ``ring``, and of ``http``, the other ports."""

    ring: int
    http: int


def shares(files: int) -> Shares:
    """Share the process's limit of open files."""
    left = max(files - RESERVED, 0)
    ring = min(left // 2, RING_FILES)
    return Shares(ring, left - ring)


def raise_limit() -> int:
    """Raise this process's limit of open files, up to the hard limit or MOST_FILES; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= files:
        files = MOST_FILES if soft == resource.RLIM_INFINITY else soft
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        log.debug("limit of open files raised", before=soft, now=files)
    if files < ENOUGH_FILES:
        log.warning(
            "few open files are allowed, and so few connections: set LimitNOFILE (systemd) or nofile (Docker, Nomad)",
            allowed=files,
            wanted=ENOUGH_FILES,
            connections_of_the_ring=shares(files).ring,
        )
    return files

"""Whether podman, CRI-O or BuildKit is on this machine, told from its sockets and its images.

A program in PATH is no trace, because this process may run in a container. /etc/containers is none either, because
skopeo has it too, and no node runs what skopeo copies. Another trace of a client belongs here.
"""

from __future__ import annotations

import os
from pathlib import Path

PODMAN, CRIO, BUILDKIT = "podman", "crio", "buildkit"
CRIO_SOCKET, BUILDKIT_SOCKET = Path("/run/crio/crio.sock"), Path("/run/buildkit/buildkitd.sock")

TRACES: dict[str, tuple[Path, ...]] = {
    PODMAN: (Path("/run/podman/podman.sock"), Path("/var/lib/containers/storage")),
    CRIO: (CRIO_SOCKET, Path("/etc/crio")),
    BUILDKIT: (BUILDKIT_SOCKET, Path("/etc/buildkit/buildkitd.toml")),
}


def found() -> list[str]:
    """The clients of which there is a trace: ``podman``, ``crio``, ``buildkit``."""
    return [client for client, traces in TRACES.items() if any(map(os.path.exists, traces))]

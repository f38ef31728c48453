"""Known paths of containerd's socket, and the known namespaces.

The paths are those of the distributions. The first one with a listener is used, else the first one that exists or that
this process may not look for, else the first one, which messages then name. The sidecar repeats the search until a path
has a listener, and then stays with it. A new distribution's path or namespace belongs here.
"""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

AUTO = "auto"

SOCKETS = (
    Path("/run/containerd/containerd.sock"),
    Path("/run/docker/containerd/containerd.sock"),  # the one that Docker manages itself
    Path("/run/k3s/containerd/containerd.sock"),
    Path("/run/k0s/containerd.sock"),
    Path("/var/snap/microk8s/common/run/containerd.sock"),
)

NAMESPACES = ("moby", "k8s.io", "default", "nomad")
"""Docker; Kubernetes and every CRI; ctr and nerdctl; Nomad's containerd driver."""


def find_socket(candidates: Iterable[Path] = SOCKETS) -> Path:
    """The first path with a listener, else the first that exists, else the first. Waits 1 s at most for each."""
    candidates = tuple(candidates)
    existing = [path for path in candidates if _may_be_socket(path)]
    return next(filter(_is_served, existing), (existing or candidates)[0])


class SocketSearch:
    """Searches for containerd's socket until it is found; threads may share one search and get the same answer."""

    def __init__(self, candidates: Iterable[Path] = SOCKETS) -> None:
        self._candidates = tuple(candidates)
        self._found: Path | None = None
        self._lock = threading.Lock()

    def look(self) -> Path:
        """The path that was found, else the result of ``find_socket`` now. Waits some seconds at most."""
        with self._lock:
            if self._found is not None:
                return self._found
            path = find_socket(self._candidates)
            if _is_served(path):
                self._found = path
            return path


def _may_be_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def _is_served(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        probe.connect(str(path))
        return True
    return False


def namespaces(given: Iterable[str]) -> tuple[str, ...]:
    """Each namespace once, in order; ``auto`` means all that are known."""
    return tuple(dict.fromkeys(name for word in given for name in (NAMESPACES if word == AUTO else (word,))))

# Where distributions put containerd's socket.  The first that exists is taken, and the first of all if none does: the
# messages name it, and the sidecar waits for it.  It goes on looking at all of them until somebody listens at one, and
# then stays there, whatever else is started later.

"""Known places of containerd's socket, and the namespaces that are served."""

from __future__ import annotations

import socket
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
    """The first socket that somebody listens on, else the first that exists, else the first."""
    candidates = tuple(candidates)
    existing = [path for path in candidates if path.is_socket()]
    return next(filter(_is_served, existing), (existing or candidates)[0])


class SocketSearch:
    """Looks for containerd's socket until there is one; all who ask in their threads are told the same."""

    def __init__(self, candidates: Iterable[Path] = SOCKETS) -> None:
        self._candidates = tuple(candidates)
        self._found: Path | None = None
        self._lock = threading.Lock()

    def look(self) -> Path:
        """The one that was found, else what ``find_socket`` says now. Waits some seconds at most."""
        with self._lock:
            if self._found is not None:
                return self._found
            path = find_socket(self._candidates)
            if _is_served(path):
                self._found = path
            return path


def _is_served(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        probe.connect(str(path))
        return True
    return False


def namespaces(given: Iterable[str]) -> tuple[str, ...]:
    """Each namespace once, in order; ``auto`` means all that are known."""
    return tuple(dict.fromkeys(name for word in given for name in (NAMESPACES if word == AUTO else (word,))))

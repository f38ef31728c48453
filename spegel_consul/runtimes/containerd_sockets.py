"""Known paths of containerd's socket, and the known namespaces.

The paths are those of the distributions. The first one with a listener is used, else the first one that exists or that
this process may not look for, else the first one, which messages then name. The sidecar repeats the search until a path
has a listener. It stays with that one while containerd restarts, because another one may run beside it, as k3s's does.
After some time without a listener it takes another path that has one, because containerd has moved: Docker's own one
was replaced by that of a package, for instance. It never takes that of a containerd that ran beside the one in use,
because the way back would need a restart of the sidecar. A new distribution's path or namespace belongs here.
"""

from __future__ import annotations

import math
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

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


MOVED = 30.0
"""Seconds without a listener after which a containerd with another socket is taken for the same one."""


def find_socket(candidates: Iterable[Path] = SOCKETS) -> Path:
    """The first path with a listener, else the first that exists, else the first. Waits 1 s at most for each."""
    candidates = tuple(candidates)
    existing = [path for path in candidates if _may_be_socket(path)]
    return next(filter(_is_served, existing), (existing or candidates)[0])


class SocketSearch:
    """Finds containerd's socket, and finds it again when it has moved; threads may share one search.

    ``clock``: seconds.
    """

    def __init__(self, candidates: Iterable[Path] = SOCKETS, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._candidates = tuple(candidates)
        self._clock = clock
        self._found: Path | None = None
        self._beside: frozenset[Path] = frozenset()  # paths that had a listener while the found one had one
        self._failed_since = self._failed_at = -math.inf
        self._lock = threading.Lock()

    def look(self) -> Path:
        """The path that was found, else the result of ``find_socket`` now. Waits some seconds at most.

        A found path is left for another one with a listener when it has had none for :data:`MOVED` seconds.
        """
        with self._lock:
            found = self._found
            if found is not None and _is_served(found):
                self._take(found)
                return found
            if found is not None and not self._has_gone():
                return found
            path = find_socket(each for each in self._candidates if each not in self._beside)
            if not _is_served(path):
                return found or path
            if found is not None and path != found:
                log.warning("containerd has moved to another socket", socket=str(path), before=str(found))
            self._take(path)
            return path

    def _take(self, path: Path) -> None:
        self._found, self._failed_at = path, -math.inf
        others = (each for each in self._candidates if each != path and _may_be_socket(each))
        self._beside = frozenset(filter(_is_served, others))

    def _has_gone(self) -> bool:
        """Whether the found path has had no listener for some time."""
        now = self._clock()
        if now - self._failed_at > MOVED:  # so long without a look, it was in use meanwhile
            self._failed_since = now
        self._failed_at = now
        return now - self._failed_since >= MOVED


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

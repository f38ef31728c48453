"""The version and image store of this node's Docker, asked over its socket.

They decide which configuration Docker reads:

* with the containerd image store, 28 or later: /etc/docker/certs.d/<registry>/hosts.toml, and _default, for all
  registries;
* all others, and these if no such file names a host for docker.io: registry-mirrors in daemon.json, for docker.io only.

A new fact about Docker belongs here; the check of it belongs to :mod:`spegel_consul.preflight.node_checks`.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any

from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass

OLD_DRIVERS = ("overlay2", "overlay", "vfs", "aufs", "devicemapper")
"""Drivers of the old image store only. Docker (26, 28) starts with such a name and the containerd image store, but then
each pull fails: ``snapshotter not loaded``."""
_TIMEOUT = 5.0
_FIRST_WITH_HOSTS = 28
_FIRST_WITH_REFERRERS = (29, 1)


class NoDocker(Exception):
    """Docker does not answer; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Docker:
    """Answer of a Docker daemon; ``mirrors``: the URLs of the mirrors of docker.io.

    ``driver``: of the image store; ``images``: how many it has. The URL of a proxy may have a password, so only its
    presence is kept.
    """

    version: str
    image_store: bool
    root: Path
    mirrors: tuple[str, ...]
    has_http_proxy: bool = False
    has_https_proxy: bool = False
    no_proxy: str = ""
    images: int = 0
    driver: str = ""

    @property
    def is_new_enough(self) -> bool:
        """Whether this version reads hosts.toml, once it has the containerd image store."""
        major = self.version.partition(".")[0]
        return major.isdigit() and int(major) >= _FIRST_WITH_HOSTS

    @property
    def reads_hosts(self) -> bool:
        return self.image_store and self.is_new_enough

    @property
    def knows_referrers(self) -> bool:
        """Whether this version reads a hosts.toml with the capability ``referrers``; older ones refuse the file."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return found is not None and (int(found[1]), int(found[2])) >= _FIRST_WITH_REFERRERS


def ask(sock: Path) -> Docker:
    """Ask the Docker behind ``sock``; waits 5 s at most. Raises NoDocker."""
    info = _get(sock, "/info")
    status = info.get("DriverStatus") or []
    config = info.get("RegistryConfig") or {}
    return Docker(
        str(info.get("ServerVersion", "")),
        ["driver-type", "io.containerd.snapshotter.v1"] in status,
        Path(info.get("DockerRootDir") or "/var/lib/docker"),
        tuple(str(url).rstrip("/") for url in config.get("Mirrors") or ()),
        has_http_proxy=bool(info.get("HttpProxy")),
        has_https_proxy=bool(info.get("HttpsProxy")),
        no_proxy=str(info.get("NoProxy") or ""),
        images=info.get("Images") or 0,
        driver=str(info.get("Driver") or ""),
    )


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(str(self._path))


def _get(sock: Path, path: str) -> dict[str, Any]:
    connection = _Unix(sock)
    try:
        connection.request("GET", path)
        with connection.getresponse() as answer:
            body = answer.read(1 << 24)
            document = json.loads(body) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise NoDocker(f"Docker at {sock} does not answer: {in_words(exc)}") from None
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise NoDocker(f"the process that listens at {sock} does not answer as Docker does")
    return document

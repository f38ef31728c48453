# podman has no daemon: each command reads the configuration, so there is nothing to start.  Its directories are given
# by flags, but registries.conf.d is not among them: the node's own is mounted over /etc/containers, for podman only.

"""podman and Buildah of one node, with images and configuration of their own."""

from __future__ import annotations

import json
from pathlib import Path

from lab import parts
from lab.netns import Netns
from lab.network import Port
from lab.process import run

_MOUNTED = 'mount --bind "$1" /etc/containers; shift; exec "$@"'
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
_ENGINE = """
[engine]
conmon_path = ["{conmon}"]
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_backend = "cni"
"""


class Podman:
    """The podman of a node. ``etc``: its /etc/containers."""

    def __init__(self, port: Port, directory: Path) -> None:
        self._netns: Netns = port.netns
        self._dir = directory
        self.etc = directory / "containers"
        self.etc.mkdir(parents=True)
        (self.etc / "policy.json").write_text(json.dumps(_POLICY))
        self._engine = directory / "containers.conf"
        self._engine.write_text(_ENGINE.format(conmon=parts.podman("conmon")))

    def pull(self, name: str, timeout: float = 60) -> str:
        """Pull an image and return its id."""
        return self.podman("pull", "--quiet", name, timeout=timeout).strip()

    def layers(self, name: str) -> list[str]:
        """The digests of an image's layers, unpacked."""
        found: list[str] = json.loads(self.podman("image", "inspect", "--format", "{{json .RootFS.Layers}}", name))
        return found

    def podman(self, *words: str, timeout: float = 60) -> str:
        return self._run("podman", "--tmpdir", self._dir / "tmp", *words, timeout=timeout)

    def buildah(self, *words: str, timeout: float = 60) -> str:
        return self._run("buildah", *words, timeout=timeout)

    def _run(self, program: str, *words: str | Path, timeout: float) -> str:
        binary = parts.podman(program)
        places = ["--root", self._dir / "root", "--runroot", self._dir / "run", "--storage-driver", "vfs"]
        argv = ["sh", "-ec", _MOUNTED, "sh", self.etc, binary, *places, *words]
        env = {
            "CONTAINERS_CONF": str(self._engine),
            "HOME": str(self._dir),
            "LD_LIBRARY_PATH": str(parts.podman_libraries()),
            "PATH": parts.path(parts.runc()),
        }
        return run(self._netns.inside(argv, private_mounts=True), timeout=timeout, env=env)

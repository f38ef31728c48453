# dockerd has one fixed path that can't be configured, /etc/docker, where the registries' hosts.toml are.  Each daemon
# gets a mount namespace in which another directory is mounted there; its other mounts are private by the same.
# It starts its containerd itself, and dies together with it.
#
# What the documentation says to type names the paths of an installation.  For that the same directories are mounted
# where an installation has them, and an /etc, a /run and a /var/lib beside them that nobody else sees.

"""Docker 26 and 28, with the containerd image store or without."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import hosts, parts
from lab.containerd import PULL_TIMEOUT, PullError
from lab.docker_io import DockerIo
from lab.network import SUBNET, Port
from lab.process import Failed, Process

NAMESPACE = "moby"
_ETC = Path("/etc/docker")
_CONTAINERD_OF = {"26": "17", "28": "21"}


class Dockerd:
    """One daemon with the containerd of its time.

    ``mirrors`` are those of daemon.json, for docker.io only. ``fresh``: daemon.json is as after an installation.
    ``insecure``: registries that may be without TLS; before 28, mirrors of daemon.json are such.
    ``docker_io``: what it takes for docker.io. ``installed``: what it sees, and whoever ``enter``s, is a machine of its
    own on which Docker has its usual paths, and its containerd those of containerd too. ``bridge``: the address and the
    prefix length of a bridge for its containers; without one they have the node's network or none.
    """

    def __init__(
        self,
        port: Port,
        directory: Path,
        version: str = "28",
        *,
        snapshotter: bool = True,
        mirrors: Sequence[str] = (),
        fresh: bool = False,
        insecure: Sequence[str] = (SUBNET,),
        docker_io: DockerIo | None = None,
        installed: bool = False,
        bridge: str | None = None,
    ) -> None:
        self.netns = port.netns
        self.version = version
        self.sock = directory / "d.sock"
        self.certs_d = directory / "etc/certs.d"
        self.client = directory / "client"
        self.containerd_sock = directory / "exec/containerd/containerd.sock"
        self.content_path = directory / "data/containerd/daemon/io.containerd.content.v1.content"
        self.process: Process | None = None
        self._docker_io = docker_io
        self._name = f"dockerd {version} on n{port.index}"
        self._dir = directory
        self.certs_d.mkdir(parents=True, exist_ok=True)
        self.config = directory / "daemon.json"
        options: dict[str, object] = {
            "data-root": str(directory / "data"),
            "exec-root": str(directory / "exec"),
            "pidfile": str(directory / "docker.pid"),
            "hosts": [f"unix://{self.sock}"],
            "iptables": False,
            "ip6tables": False,
            **({"bip": bridge, "ip-masq": False} if bridge is not None else {"bridge": "none"}),
        }
        if not fresh:
            options |= {
                "features": {"containerd-snapshotter": snapshotter},
                "registry-mirrors": list(mirrors),
                "insecure-registries": list(insecure),
            }
        self._mounts = {directory / "etc": _ETC}
        if installed:
            self._mounts = _machine(directory) | self._mounts
            options |= {"data-root": "/var/lib/docker", "exec-root": "/run/docker"}
            options["hosts"] = [f"unix://{self.sock}", "unix:///run/docker.sock"]
        self.config.write_text(json.dumps(options, indent=2))

    def start(self) -> None:
        """Start it; ``await_ready`` waits for it. A restarted one keeps its images."""
        if not _ETC.is_dir():
            raise RuntimeError(f"{_ETC} is missing: run .ci/install-real-parts, or make the directory")
        dockerd = parts.dockerd(self.version)
        # also for docker-init and docker, which only 28's directory has in a form that runs everywhere
        path = parts.path(parts.containerd(_CONTAINERD_OF[self.version]), parts.runc(), dockerd, parts.docker("28"))
        mounts = [f"mount --bind {shlex.quote(str(source))} {target}" for source, target in self._mounts.items()]
        script = " && ".join([*mounts, 'exec "$@"'])
        argv: list[str | Path] = ["sh", "-c", script, "sh", dockerd, "--config-file", self.config]
        self.process = self.netns.start(
            self._name,
            self._docker_io.believed(argv) if self._docker_io is not None else argv,
            log_path=self._dir / "dockerd.log",
            env={"PATH": path},
            private_mounts=True,
        )

    def running(self) -> Process:
        if self.process is None:
            raise Failed(f"{self._name} was not started")
        return self.process

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs ``argv`` with the network and the mounts of this daemon, in the root directory."""
        return ["nsenter", f"--target={self.running().pid}", "--net", "--mount", *map(str, argv)]

    def await_ready(self, timeout: float = 30) -> None:
        self.running().until(self._answers, timeout=timeout, what=f"{self._name} answers")

    def restart(self) -> None:
        self.running().stop()
        self.start()
        self.await_ready()

    def write_hosts(self, registry: str, toml: str) -> None:
        """Registry configuration as containerd's; Docker 28 with the containerd image store reads it."""
        hosts.write_hosts(self.certs_d, registry, toml)

    def mirror(self, *targets: str, registry: str = "_default", server: str | None = None) -> None:
        self.write_hosts(registry, hosts.mirror_toml(targets, server))

    def pull(self, ref: str, timeout: float = PULL_TIMEOUT) -> None:
        """Raises PullError."""
        try:
            self.docker("pull", ref, timeout=timeout)
        except Failed as exc:
            raise PullError(f"{exc}\n{self.running().tail()}") from None

    def images(self) -> list[str]:
        return self.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()

    def content(self) -> set[str]:
        """Digests of the blobs that its containerd has; none without the containerd image store."""
        return set(self._ctr("content", "ls", "-q").split())

    def records(self) -> set[str]:
        """Names of the images that its containerd has, which ``docker images`` does not always show."""
        return set(self._ctr("images", "ls", "-q").split())

    def _ctr(self, *words: str) -> str:
        ctr = parts.containerd(_CONTAINERD_OF[self.version], "ctr")
        return self.netns.run(ctr, "-a", self.containerd_sock, "-n", NAMESPACE, *words)

    def docker(self, *words: str | Path, timeout: float = 20) -> str:
        """Docker's own command line."""
        env = {"DOCKER_CONFIG": str(self.client)}
        return self.netns.run(parts.docker(self.version), "-H", f"unix://{self.sock}", *words, timeout=timeout, env=env)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(str(self.sock))
                sock.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
                return sock.recv(64).startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
        except OSError:
            return False


def _machine(directory: Path) -> Mapping[Path, Path]:
    """What is mounted where to make a machine of its own."""
    machine, data, run = directory / "machine", directory / "data", directory / "exec"
    leave_out = shutil.ignore_patterns("docker", "containerd")
    shutil.copytree("/etc", machine / "etc", symlinks=True, ignore=leave_out)
    for path in ("etc/docker", "etc/containerd", "run/docker", "run/containerd"):
        (machine / path).mkdir(parents=True)
    for path in ("docker", "containerd", "spegel"):
        (machine / "lib" / path).mkdir(parents=True)
    for path in (run / "containerd", data / "containerd/daemon"):
        path.mkdir(parents=True)
    return {
        machine / "etc": Path("/etc"),
        machine / "run": Path("/run"),
        machine / "lib": Path("/var/lib"),
        data: Path("/var/lib/docker"),
        data / "containerd/daemon": Path("/var/lib/containerd"),
        run: Path("/run/docker"),
        run / "containerd": Path("/run/containerd"),
    }

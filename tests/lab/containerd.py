# Root, state, socket, CNI and registry configuration are all private, so that several daemons of several versions
# live side by side.  NRI is off: from 2.0 on all daemons of a machine would fight for one socket in /run.
# Mounts are private as well: a daemon that is killed while it unpacks a layer leaves none behind.

"""containerd 1.6, 1.7 and 2.1."""

from __future__ import annotations

import signal
from pathlib import Path

from lab import cri, hosts, parts
from lab.docker_io import DockerIo
from lab.network import Port
from lab.process import Failed, Process, until

CRI_NAMESPACE = "k8s.io"
PULL_TIMEOUT = 60.0

_COMMON = """
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{dir}/c.sock"
"""
_CONFIG_1 = """
version = 2
{common}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
{image_options}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = {discard}
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{config_path}"
"""
_CONFIG_2 = """
version = 3
{common}
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = "{dir}/cni"
[plugins."io.containerd.cri.v1.images"]
{image_options}
  discard_unpacked_layers = {discard}
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{config_path}"
"""


class PullError(Failed):
    """An image could not be pulled, or not in time."""


class Containerd:
    """One daemon.

    ``image_options`` are lines of TOML for the CRI's table about images, which in 1.x is that of the whole CRI;
    ``extra`` is TOML that comes last. ``docker_io``: what it takes for docker.io.
    ``config_path``: of the CRI, where ``{certs_d}`` is this daemon's own directory.
    """

    def __init__(
        self,
        port: Port,
        directory: Path,
        version: str,
        *,
        discard_unpacked_layers: bool = False,
        image_options: str = "",
        extra: str = "",
        docker_io: DockerIo | None = None,
        config_path: str = "{certs_d}",
    ) -> None:
        self.netns = port.netns
        self.version = version
        self.sock = directory / "c.sock"
        self.certs_d = directory / "certs.d"
        self.content_path = directory / "root/io.containerd.content.v1.content"
        self.process: Process | None = None
        self.env: dict[str, str] = {}
        """Its environment from the next start on, beside PATH."""
        self._docker_io = docker_io
        self._name = f"containerd {version} on n{port.index}"
        self._dir = directory
        for name in ("root", "state", "cni", "certs.d"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self._config = directory / "config.toml"
        self._configure(config_path, discard_unpacked_layers, image_options, extra)

    def start(self) -> None:
        """Start it; ``await_ready`` waits for it. A restarted one keeps its content."""
        binary = parts.containerd(self.version)
        argv: list[str | Path] = [binary, "-c", self._config]
        self.process = self.netns.start(
            self._name,
            self._docker_io.believed(argv) if self._docker_io is not None else argv,
            log_path=self._dir / "containerd.log",
            env={"PATH": parts.path(binary, parts.runc()), **self.env},
            private_mounts=True,
        )

    def running(self) -> Process:
        if self.process is None:
            raise Failed(f"{self._name} was not started")
        return self.process

    def await_ready(self, timeout: float = 20) -> None:
        self.running().until(
            lambda: self.sock.exists() and cri.is_served(self.sock),
            timeout=timeout,
            what=f"{self._name} serves the CRI",
        )

    def restart(self, number: int = signal.SIGKILL) -> None:
        process = self.running()
        process.kill9() if number == signal.SIGKILL else process.stop()
        self.start()
        self.await_ready()

    def reconfigure(self, *, config_path: str = "{certs_d}", discard_unpacked_layers: bool = False) -> None:
        """Restart it with another configuration and the same content."""
        self.running().stop()
        self._configure(config_path, discard_unpacked_layers, "", "")
        self.start()
        self.await_ready()

    def _configure(self, config_path: str, discard: bool, image_options: str, extra: str) -> None:
        template = _CONFIG_2 if self.version.startswith("2") else _CONFIG_1
        config = template.format(
            common=_COMMON.format(dir=self._dir),
            dir=self._dir,
            config_path=config_path.format(certs_d=self.certs_d),
            discard=str(discard).lower(),
            image_options=image_options,
        )
        self._config.write_text(config + extra)

    def write_hosts(self, registry: str, toml: str) -> None:
        hosts.write_hosts(self.certs_d, registry, toml)

    def mirror(self, *targets: str, registry: str = "_default", server: str | None = None) -> None:
        """Ask ``targets`` before ``server`` for the images of ``registry``."""
        self.write_hosts(registry, hosts.mirror_toml(targets, server))

    def pull_cri(self, ref: str, timeout: float = PULL_TIMEOUT) -> str:
        """Pull as kubelet does; returns the image's id. Raises PullError."""
        try:
            return cri.pull_image(self.sock, ref, timeout)
        except cri.CriError as exc:
            raise PullError(f"{self._name}: {ref}: {exc}\n{self.running().tail()}") from None

    def pull_ctr(self, ref: str, timeout: float = PULL_TIMEOUT, *, namespace: str = CRI_NAMESPACE) -> None:
        """Pull with ctr, which in 1.x fetches on its own and not in the daemon. Raises PullError."""
        try:
            self.ctr("images", "pull", "--hosts-dir", self.certs_d, ref, timeout=timeout, namespace=namespace)
        except Failed as exc:
            raise PullError(f"{exc}\n{self.running().tail()}") from None

    def import_image(self, tar: Path, *, namespace: str = CRI_NAMESPACE, all_platforms: bool = False) -> None:
        """Import an archive. Its content has no label that says from which repository it came, unlike a pull's."""
        words = ["--all-platforms"] if all_platforms else []
        self.ctr("images", "import", *words, tar, namespace=namespace, timeout=PULL_TIMEOUT)

    def remove_image(self, ref: str, *, namespace: str = CRI_NAMESPACE, timeout: float = 20) -> None:
        """Remove an image and, before this returns, the content that only it referred to.

        In the namespace that the CRI watches, it adds names of its own to an image, whoever pulled it.
        """
        digest = self._records(namespace)[ref]

        def is_removed() -> bool:
            names = [name for name, target in self._records(namespace).items() if target == digest]
            if names:
                self.ctr("images", "rm", "--sync", *names, namespace=namespace)
            return not names

        until(is_removed, timeout=timeout, what=f"{ref} is removed from {self._name}")

    def images(self, *, namespace: str = CRI_NAMESPACE) -> list[str]:
        return list(self._records(namespace))

    def content(self, *, namespace: str = CRI_NAMESPACE) -> set[str]:
        """Digests of the blobs that the daemon knows in a namespace."""
        return set(self.ctr("content", "ls", "-q", namespace=namespace).split())

    def labels(self, digest: str, *, namespace: str = CRI_NAMESPACE) -> dict[str, str]:
        for line in self.ctr("content", "ls", namespace=namespace).splitlines()[1:]:
            words = line.split()
            if words[0] == digest:
                pairs = (pair.partition("=") for pair in words[-1].split(",") if "=" in pair)
                return {key: value for key, _, value in pairs}
        raise KeyError(digest)

    def blob(self, digest: str) -> Path:
        """The file in which a blob is kept."""
        return self.content_path / "blobs" / digest.replace(":", "/")

    def _records(self, namespace: str) -> dict[str, str]:
        rows = [line.split() for line in self.ctr("images", "ls", namespace=namespace).splitlines()[1:]]
        return {row[0]: row[2] for row in rows}

    def ctr(self, *words: str | Path, namespace: str = CRI_NAMESPACE, timeout: float = 20) -> str:
        """containerd's own command line, on this node."""
        binary = parts.containerd(self.version, "ctr")
        return self.netns.run(binary, "-a", self.sock, "-n", namespace, *words, timeout=timeout)

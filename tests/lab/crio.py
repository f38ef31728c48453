# CRI-O has its state below /run and /var/lib, and its registries in /etc/containers.  Each daemon has a mount namespace
# in which directories of its own are mounted there, so /run/crio/crio.sock is where the product looks for it.  No test
# starts a pod, so there are no network plugins, and any program stands for the one that pins namespaces.

"""A real CRI-O on one node."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from lab import cri, parts
from lab.cri import CriError
from lab.netns import Netns
from lab.network import Port
from lab.process import Failed, Process

_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
_APPLIED = "Applied new registry configuration"
_CONFIG = """\
[crio]
storage_driver = "vfs"
log_dir = "{directory}/log"

[crio.runtime]
default_runtime = "runc"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
hooks_dir = []
pinns_path = "/bin/true"
irqbalance_config_restore_file = "disable"

[crio.runtime.runtimes.runc]
runtime_path = "{runc}"
monitor_path = "{conmon}"

[crio.image]
auto_reload_registries = {watches}
signature_policy_dir = "{directory}/policies"
namespaced_auth_dir = "{directory}/auth"

[crio.network]
network_dir = "{directory}/cni"
plugin_dirs = ["{directory}/cni/bin"]

[crio.nri]
enable_nri = false
"""


def _program() -> Path:
    found = Path(os.environ.get("CRIO", "/nowhere"))
    if not found.is_file():
        raise RuntimeError(f"{found} is missing: make crio CRIO=/path/to/crio")
    return found


class Crio:
    """The CRI-O of a node. ``etc``: its /etc/containers. ``watches``: it reads these files again when they change."""

    def __init__(self, port: Port, directory: Path, *, watches: bool = False) -> None:
        self._netns: Netns = port.netns
        self._dir = directory
        self._name = f"crio on n{port.index}"
        self.etc = directory / "containers"
        self._mounts = {self.etc: "/etc/containers", directory / "run": "/run", directory / "lib": "/var/lib"}
        for path in self._mounts:
            path.mkdir(parents=True)
        (self.etc / "registries.conf.d").mkdir()
        (self.etc / "policy.json").write_text(json.dumps(_POLICY))
        self._config = directory / "crio.conf"
        self._config.write_text(
            _CONFIG.format(
                directory=directory, runc=parts.runc(), conmon=parts.podman("conmon"), watches=str(watches).lower()
            )
        )
        self.process: Process | None = None

    @property
    def _sock(self) -> Path:
        return self._dir / "run/crio/crio.sock"

    def start(self, timeout: float = 30) -> None:
        """Start it, and wait until it answers."""
        mounts = [f"mount --bind {shlex.quote(str(source))} {target}" for source, target in self._mounts.items()]
        argv: list[str | Path] = ["sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh", _program()]
        argv += ["--config", self._config, "--config-dir", self._dir / "crio.conf.d"]
        log_path, env = self._dir / "crio.log", {"PATH": parts.path(parts.runc()), "HOME": str(self._dir)}
        self.process = self._netns.start(self._name, argv, log_path=log_path, env=env, private_mounts=True)
        self.process.until(lambda: cri.is_served(self._sock), timeout=timeout, what=f"{self._name} answers")

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()

    def reload(self, timeout: float = 20) -> None:
        """What ``systemctl reload crio`` does; returns when it has read the files."""
        before = self.reads()
        self._running().signal(signal.SIGHUP)
        self.await_reads(before + 1, timeout)

    def reads(self) -> int:
        """How often it has read the files again since its start."""
        return self._running().log().count(_APPLIED)

    def await_reads(self, number: int, timeout: float = 20) -> None:
        self._running().until(lambda: self.reads() >= number, timeout=timeout, what=f"{self._name} has read its files")

    def pull(self, ref: str, timeout: float = 60) -> str:
        """Pull an image as kubelet does; returns its id. Raises CriError."""
        try:
            return cri.pull_image(self._sock, ref, timeout)
        except CriError as exc:
            raise CriError(exc.code, f"{exc.details}\n{self._running().tail()}") from None

    def remove(self, ref: str) -> None:
        cri.remove_image(self._sock, ref)

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs ``argv`` with the network and the mounts of this daemon, in the root directory."""
        return ["nsenter", f"--target={self._running().pid}", "--net", "--mount", *map(str, argv)]

    def _running(self) -> Process:
        if self.process is None:
            raise Failed(f"{self._name} was not started")
        return self.process

"""``Subject``: the parts of a node that preflight checks, and the runtimes that are in use.

Installed is not used: Debian's containerd comes with Docker, has a CRI that nobody asks, and pulls work without it. So
a finding about a runtime is a failure only if the runtime is in use, and a warning otherwise. An explicit ``--runtime``
decides; else the traces of pulls do. A new trace belongs here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, replace
from pathlib import Path

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.disk import foreign_files
from spegel_consul.endpoints.check import Check, Status
from spegel_consul.endpoints.dial_back import Peer
from spegel_consul.http.peer_tls import Encryption, PeerTls
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.preflight.consul_checks import ConsulUse

CONTAINERD, DOCKER = "containerd", "docker"
KUBELET = Path("/var/lib/kubelet")
CRI_NAMESPACE = "k8s.io"
DEFAULT_CONFIG = Path("/etc/containerd/config.toml")


@dataclass(frozen=True, slots=True)
class Subject:
    """The parts to check; None leaves a part out."""

    address: str
    registry_port: int
    bound: str = ""
    containerd_sock: Path | None = None
    namespaces: tuple[str, ...] = ()
    content_path: Path | None = None
    containerd_config: Path | None = None
    """None: the file that the running containerd was started with, else the default one."""
    containerd_hosts: Path | None = None
    docker_sock: Path | None = None
    docker_hosts: Path | None = None
    containers_config: Path | None = None
    """The directory of registries.conf."""
    buildkitd_config: Path | None = None
    consul: ConsulSettings | None = None
    consul_use: ConsulUse = field(default_factory=ConsulUse)
    leader_key: str | None = None
    """The one of this node's cluster; None: services of all clusters count."""
    peer: Peer | None = None
    tls: bool = False
    """Whether the nodes' registries speak TLS and nothing else."""
    peer_tls: Encryption | None = None
    certificates: PeerTls | None = None
    """This node's own, from files or of the running sidecar; None with ``peer_tls``: Consul is asked for one."""
    client_pair: tuple[Path, Path] | None = None
    """The files of this node's certificate and key, for mirrors that verify their clients."""
    runtime_port: int | None = None
    """The port of the listener for this node's own runtime, if there is one."""
    runtimes: frozenset[str] = frozenset()
    """The runtimes that are in use; empty to find out."""
    kubelet: Path = KUBELET


def cri_is_used(subject: Subject, namespaces: Iterable[str] | None, *, has_docker: bool) -> bool:
    """Whether images are pulled through the CRI. ``namespaces``: those of containerd, None if they are not known."""
    if subject.runtimes:
        return CONTAINERD in subject.runtimes
    existing = set(namespaces or ())
    if CRI_NAMESPACE in existing or foreign_files.may_exist(subject.kubelet):
        return True
    # Docker, nerdctl and Nomad's driver use containerd without its CRI
    return not has_docker and not existing


def docker_is_used(subject: Subject, images: int) -> bool:
    """Whether images are pulled through Docker, which has ``images``."""
    if subject.runtimes:
        return DOCKER in subject.runtimes
    return images > 0 or not foreign_files.may_exist(subject.kubelet)


def unless_used(checks: Iterable[Check], reason: str) -> list[Check]:
    """The findings about a runtime that is not in use: failures are warnings, with ``reason``."""
    return [
        replace(check, status=Status.WARN, says=f"{check.says} ({reason})") if check.status is Status.FAIL else check
        for check in checks
    ]

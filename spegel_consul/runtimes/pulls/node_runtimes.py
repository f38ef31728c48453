"""The runtimes of this node that have to pull an image for it to be there.

Namespaces tell them: one that exists in containerd is in use. ``moby`` is Docker's, and Docker is asked over its own
socket; all others are containerd's. On a node on which none of the configured namespaces exists yet, because nothing
was pulled there before, one of them is chosen: Docker's if Docker answers, else the CRI's, else the first.

A rule about the runtimes of a node belongs here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from spegel_consul.disk.threads import in_thread
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.reference import DEFAULT_REGISTRY, Reference
from spegel_consul.runtimes import docker
from spegel_consul.runtimes.pulls import CantPull, Received, Runtime
from spegel_consul.runtimes.pulls.containerd_pulls import ContainerdPulls
from spegel_consul.runtimes.pulls.docker_pulls import DockerPulls
from spegel_consul.store.containerd.grpc_calls import ContainerdUnavailable
from spegel_consul.store.containerd.grpc_client import ContainerdClient
from spegel_consul.store.containerd.image_pulls import CRI_NAMESPACE

DOCKER_NAMESPACE = "moby"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A runtime that can't be asked; its pull raises the reason."""

    name: str
    reason: str

    async def pull(self, reference: Reference, within: float, received: Received) -> None:
        raise CantPull(self.reason, left_out=True)


@dataclass(frozen=True, slots=True)
class NodeRuntimes:
    """``socket`` finds containerd's socket; ``namespaces``: those of the settings, in their order.

    ``hosts``: the directory of the registries' hosts.toml, as containerd sees it.
    """

    socket: Callable[[], Path]
    namespaces: Sequence[str]
    docker_sock: Path
    hosts: Path

    async def choose(self, reference: Reference) -> list[Runtime]:
        """The runtimes that have to pull ``reference``. Raises CantPull if containerd does not answer."""
        sock = await in_thread(self.socket)
        try:
            async with ContainerdClient(sock, self.namespaces[0]) as client:
                present = await client.namespaces()
        except ContainerdUnavailable as exc:
            raise CantPull(str(exc)) from None
        used = [name for name in self.namespaces if name in present]
        if used:
            return [await self._runtime(sock, name, reference) for name in used]
        if DOCKER_NAMESPACE in self.namespaces:
            found = await self._docker(reference)
            if len(self.namespaces) == 1 or not isinstance(found, LeftOut):
                return [found]
        others = [name for name in self.namespaces if name != DOCKER_NAMESPACE]
        first = CRI_NAMESPACE if CRI_NAMESPACE in others else others[0]
        return [ContainerdPulls(sock, first, self.hosts)]

    async def _runtime(self, sock: Path, namespace: str, reference: Reference) -> Runtime:
        if namespace == DOCKER_NAMESPACE:
            return await self._docker(reference)
        return ContainerdPulls(sock, namespace, self.hosts)

    async def _docker(self, reference: Reference) -> Runtime:
        try:
            found = await in_thread(partial(docker.ask, self.docker_sock))
        except docker.NoDocker as exc:
            return LeftOut("docker", str(exc))
        if not found.image_store:
            return LeftOut("docker", f"Docker {found.version} does not keep its images in containerd")
        if not found.is_new_enough and (reference.registry != DEFAULT_REGISTRY or not found.mirrors):
            return LeftOut("docker", f"Docker {found.version} does not ask the mirror for {reference.registry}")
        return DockerPulls(self.docker_sock)

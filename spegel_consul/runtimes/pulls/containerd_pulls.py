"""containerd as a runtime that pulls: over the CRI in its namespace, over the transfer service in all others.

Without the CRI plugin the transfer service is asked for ``k8s.io`` too. A rule about the choice between them belongs
here; the calls are in :mod:`spegel_consul.store.containerd.image_pulls`.
"""

from __future__ import annotations

from pathlib import Path

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.reference import Reference
from spegel_consul.runtimes.pulls import CantPull, Received
from spegel_consul.store.containerd import image_pulls
from spegel_consul.store.containerd.grpc_calls import CallUnknown, ContainerdUnavailable, NotFound
from spegel_consul.store.containerd.grpc_client import ContainerdClient


@dataclass(frozen=True, slots=True)
class ContainerdPulls:
    """containerd at ``socket``. ``hosts``: the directory of the registries' hosts.toml, as containerd sees it."""

    socket: Path
    namespace: str
    hosts: Path

    @property
    def name(self) -> str:
        return f"containerd {self.namespace}"

    async def pull(self, reference: Reference, within: float, received: Received) -> None:
        """As the protocol says; containerd does not say how much it has received."""
        try:
            async with ContainerdClient(self.socket, self.namespace) as client:
                await self._pull(client, str(reference), within)
        except NotFound as exc:
            raise CantPull(str(exc), missing=True) from None
        except ContainerdUnavailable as exc:
            raise CantPull(str(exc)) from None

    async def _pull(self, client: ContainerdClient, image: str, within: float) -> None:
        lacks = ""
        if self.namespace == image_pulls.CRI_NAMESPACE:
            try:
                await image_pulls.by_cri(client, image, within)
                return
            except CallUnknown:
                lacks = "this containerd has no CRI plugin, and "
        version = await client.version()
        if _major(version) < image_pulls.FIRST_TRANSFER_WITH_HOSTS:
            raise CantPull(
                f"{lacks}the transfer API of containerd {version} does not ask the mirror: that needs"
                f" {image_pulls.FIRST_TRANSFER_WITH_HOSTS}.0",
                left_out=True,
            )
        try:
            await image_pulls.by_transfer(client, image, self.hosts, within)
        except CallUnknown:
            message = f"{lacks}the transfer service of containerd {version} is disabled"
            raise CantPull(message, left_out=True) from None


def _major(version: str) -> int:
    """The major version; a text that is no version, as of a development build, counts as a new one."""
    major = version.removeprefix("v").partition(".")[0]
    return int(major) if major.isascii() and major.isdigit() else image_pulls.FIRST_TRANSFER_WITH_HOSTS

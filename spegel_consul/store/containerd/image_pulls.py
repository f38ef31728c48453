"""Pulls that containerd makes itself, so that they go through its own ``hosts.toml``.

There are two calls. The CRI's ``PullImage`` is the one of kubelet; it always pulls into the namespace ``k8s.io`` and
reads the registries' directory of containerd's own configuration. The transfer service pulls into any namespace; the
request names the registries' directory, as containerd sees it. Versions before 2.0 have the call and ignore the
directory, so their pulls would pass by the mirror. Neither call has the credentials of a user.

Another call by which containerd pulls belongs here.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import Message

from spegel_consul.oci.platforms import OS, this_architecture
from spegel_consul.store.containerd.grpc_client import ContainerdClient
from spegel_consul.store.containerd.proto import containerd_pb2 as pb

CRI_NAMESPACE = "k8s.io"
FIRST_TRANSFER_WITH_HOSTS = 2
"""containerd's major version since which a transfer reads ``hosts.toml`` of the directory that it is given."""


async def by_cri(client: ContainerdClient, image: str, within: float) -> None:
    """Have the CRI pull ``image`` within so many seconds.

    Raises NotFound if no registry has it, CallUnknown without the CRI plugin, ContainerdUnavailable for all else.
    """
    request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
    await client.call("/runtime.v1.ImageService/PullImage", request, pb.PullImageResponse, within)


async def by_transfer(client: ContainerdClient, image: str, hosts: Path, within: float) -> None:
    """Pull this platform's part of ``image`` into the client's namespace, and unpack it, within so many seconds.

    ``hosts``: the directory with ``<registry>/hosts.toml``. Raises as :func:`by_cri`.
    """
    platform = pb.Platform(os=OS, architecture=this_architecture())
    source = pb.OCIRegistry(reference=image, resolver=pb.RegistryResolver(host_dir=str(hosts)))
    destination = pb.ImageStore(name=image, platforms=[platform], unpacks=[pb.UnpackConfiguration(platform=platform)])
    request = pb.TransferRequest(source=_any("OCIRegistry", source), destination=_any("ImageStore", destination))
    await client.call("/containerd.services.transfer.v1.Transfer/Transfer", request, empty_pb2.Empty, within)


def _any(name: str, message: Message) -> any_pb2.Any:
    # containerd compares the whole text, which has no host in front of the name
    return any_pb2.Any(type_url=f"containerd.types.transfer.{name}", value=message.SerializeToString())

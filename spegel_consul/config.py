"""What a sidecar is told to do: one frozen object, checked before anything starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from spegel_consul.consul.election import ElectionSettings
from spegel_consul.consul.registration import ServiceMode
from spegel_consul.consul.settings import ConsulSettings
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry.mirror import MirrorSettings
from spegel_consul.server.listen import ListenAddress


class BootstrapKind(Enum):
    """How the ring is found."""

    CONSUL = "consul"
    STATIC = "static"


class StoreKind(Enum):
    """What serves the content."""

    CONTAINERD = "containerd"
    LAYOUT = "layout"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of ``spegel-consul registry``; the command's help says what each one is for."""

    registry_addr: ListenAddress
    router_addr: ListenAddress
    metrics_addr: ListenAddress
    advertise_addr: str | None
    node_name: str
    data_dir: Path | None
    store: StoreKind
    containerd_sock: Path
    containerd_namespace: str
    containerd_content_path: Path | None
    layout_path: Path | None
    images: ImageFilter
    mirror: MirrorSettings
    manifest_cache_size: int
    bootstrap: BootstrapKind
    static_peers: tuple[str, ...]
    consul: ConsulSettings | None
    consul_service: ServiceMode
    election: ElectionSettings


def check_advertise_addr(text: str) -> str:
    """``text`` as an IP address. Raises ValueError with a clear message."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address; peers and Consul are told it as it is") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{text!r} is not an address that a peer can connect to")
    return str(address)

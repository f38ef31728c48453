"""Settings of a sidecar: one frozen object, checked before anything starts. A new flag of ``registry`` belongs here."""

from __future__ import annotations

import enum
from pathlib import Path

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.service_definitions import ServiceMode
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.http.peer_client import PeerLimits
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.http.server.listen import ListenAddress
from spegel_consul.http.tls import TlsFiles
from spegel_consul.join.join_settings import BootstrapSettings
from spegel_consul.join.leader_change import OnLeaderChange
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.places import Place
from spegel_consul.preflight.node_address import NodeAddress
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.address_policy import PeerPolicy


class ZoneFrom(enum.Enum):
    """The source of the names of this node's place that ``--zone`` does not give; auto: Consul if used, else Nomad."""

    AUTO = "auto"
    CONSUL = "consul"
    NOMAD = "nomad"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of ``spegel-consul registry``; the command's help says what each one is for."""

    registry_addr: ListenAddress
    runtime_addr: ListenAddress | None
    router_addr: ListenAddress
    metrics_addr: ListenAddress
    web_allowed_hosts: tuple[str, ...]
    """Names, besides its own, by which the metrics port may be called."""
    advertise_addr: tuple[NodeAddress, ...]
    node_name: str
    data_dir: Path | None
    containerd_sock: Path | None
    """None: the socket is searched for at the known places."""
    containerd_namespaces: tuple[str, ...]
    containerd_content_path: Path | None
    docker_sock: Path
    containerd_registry_config_path: Path
    """The directory of the registries' hosts.toml, as containerd sees it."""
    preheat: bool
    layout_path: Path | None
    """An OCI image layout to serve; None: the content of containerd is served."""
    images: ImageFilter
    mirror: MirrorSettings
    tag_check: bool
    """Whether tags are checked at their registries."""
    follow_chain: int
    peer_limits: PeerLimits
    max_upload: int | None
    upload_rate: int | None
    """Bytes per second to peers; that from peers is in ``mirror``."""
    tls: TlsFiles | None
    peer_tls: Encryption | None
    """None: all connections are encrypted with ``tls``, or none without it."""
    basic_auth_file: Path | None
    peer_policy: PeerPolicy
    skip_preflight: bool
    hang_timeout: float
    heartbeat: int | None
    bootstrap: BootstrapSettings
    consul: ConsulSettings | None
    consul_service: ServiceMode
    election: ElectionSettings
    on_leader_change: OnLeaderChange
    place: Place
    """The names of this node's place that are known without Consul."""
    place_from_consul: bool

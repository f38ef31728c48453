"""Preparation: the settings and the machine are checked before anything starts.

Sockets are bound, the identity is read, addresses are worked out and files of secrets are parsed, so a wrong setting
ends the start with one line instead of a task's failure later. No task runs yet. A setting that can be wrong on its own
is checked by click; one that needs the machine to be checked belongs here, as a field of :class:`PreparedNode`.
"""

from __future__ import annotations

import socket

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints.check import Status
from spegel_consul.http.basic_auth import Credentials, CredentialsError
from spegel_consul.http.peer_tls import Encryption, PeerTls, is_plain_to_own
from spegel_consul.http.server.listen import ListenError, listen
from spegel_consul.http.tls import Tls, TlsError
from spegel_consul.join.sources.nomad_api import NomadClient
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import RingError, host_port
from spegel_consul.places import Here
from spegel_consul.preflight import node_checks
from spegel_consul.preflight.consul_checks import ConsulUse
from spegel_consul.preflight.node_address import NoAddress, advertised
from spegel_consul.preflight.subject import Subject
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.runtimes.containerd_sockets import find_socket
from spegel_consul.sidecar.address_watch import AddressWatch
from spegel_consul.sidecar.settings import Settings

log = structlog.get_logger(__name__)


class StartError(Exception):
    """The sidecar can't start; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class PreparedNode:
    """The facts of this node, with its open sockets and its clients, which have not connected yet."""

    identity: Ed25519PrivateKey
    registry: socket.socket
    runtime: socket.socket | None
    """For this node's runtimes only; None: they use that of the registry."""
    router: socket.socket
    metrics: socket.socket
    address: str
    secondary: str | None
    """Its address of the other IP family, if it has both."""
    router_address: str
    address_watch: AddressWatch
    consul: ConsulClient | None
    nomad: NomadClient | None
    tls: PeerTls | None
    credentials: Credentials | None
    here: Here

    @property
    def registry_port(self) -> int:
        return int(self.registry.getsockname()[1])

    @property
    def router_port(self) -> int:
        return int(self.router.getsockname()[1])

    @property
    def metrics_port(self) -> int:
        return int(self.metrics.getsockname()[1])

    @property
    def registry_url(self) -> str:
        return f"{self.scheme}://{host_port(self.address, self.registry_port)}"

    @property
    def metrics_url(self) -> str:
        return f"http://{host_port(self.address, self.metrics_port)}"

    @property
    def scheme(self) -> str:
        """The scheme by which this machine's own clients call the registry."""
        return "http" if is_plain_to_own(self.tls) else "https"


def prepare(settings: Settings) -> PreparedNode:
    """Check the settings and the machine, and open the sockets. Raises StartError."""
    try:
        node = _prepare(settings)
        finding = node_checks.address_check(node.address, settings.registry_addr.host)
    except (ListenError, NoAddress, RingError, TlsError, CredentialsError, ValueError) as exc:
        raise StartError(str(exc)) from None
    if finding.fatal and not settings.skip_preflight:
        raise StartError(f"{finding.says}: {finding.fix} (or --skip-preflight)")
    return node


def _prepare(settings: Settings) -> PreparedNode:
    consul = ConsulClient(settings.consul) if settings.consul is not None else None
    address = advertised(settings.advertise_addr, settings.registry_addr.host)
    router_address = advertised(settings.advertise_addr, settings.router_addr.host)
    secondary = settings.advertise_addr[1] if len(settings.advertise_addr) > 1 else None
    return PreparedNode(
        load_or_create(settings.data_dir),
        listen(settings.registry_addr, "--registry-addr"),
        listen(settings.runtime_addr, "--runtime-addr") if settings.runtime_addr is not None else None,
        listen(settings.router_addr, "--router-addr"),
        listen(settings.metrics_addr, "--metrics-addr"),
        address.ip,
        secondary.ip if secondary is not None else None,
        router_address.ip,
        AddressWatch([address, router_address, *filter(None, [secondary])]),
        consul,
        NomadClient(settings.bootstrap.nomad) if settings.bootstrap.nomad is not None else None,
        _tls(settings, consul),
        Credentials(settings.basic_auth_file) if settings.basic_auth_file is not None else None,
        Here(settings.place),
    )


def _tls(settings: Settings, consul: ConsulClient | None) -> PeerTls | None:
    """The certificates: those of the files, else those of Consul's authority. Raises TlsError."""
    if settings.tls is not None:
        return Tls(settings.tls, settings.peer_tls or Encryption.ALL)
    if settings.peer_tls is None or consul is None:
        return None
    # imported here, because most nodes need no certificate
    from spegel_consul.consul.authority.consul_tls import ConsulTls

    return ConsulTls(consul, settings.peer_tls, settings.data_dir)


async def log_findings(settings: Settings, node: PreparedNode, known: str | None) -> None:
    """Log the findings of preflight about this node. The command ``preflight`` checks the runtimes' files.

    ``known``: the problem of the store, which the log has already.
    """
    sock = settings.containerd_sock or await in_thread(find_socket)
    subject = Subject(
        address=node.address,
        registry_port=node.registry_port,
        bound=settings.registry_addr.host,
        containerd_sock=sock if settings.layout_path is None else None,
        namespaces=settings.containerd_namespaces,
        content_path=settings.containerd_content_path,
        consul=settings.consul,
        consul_use=ConsulUse.of(settings.bootstrap.kinds, settings.consul_service, settings.election.key),
        tls=not is_plain_to_own(node.tls),
        peer_tls=settings.peer_tls,
        certificates=node.tls,
        runtime_port=node.runtime.getsockname()[1] if node.runtime is not None else None,
    )
    for check in await node_checks.run(subject):
        say = log.debug if check.status is Status.OK or check.says == known else log.warning
        say("preflight", check=check.name, status=check.status.value, says=check.says, fix=check.fix or None)

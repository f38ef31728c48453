"""Assembles one bootstrap from the settings.

Each kind of bootstrap is one case here; more than one kind becomes ``SeveralBootstraps``, in the order of preference.

A new kind of bootstrap needs a case here (see ``spegel_consul.join``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.http.peer_tls import PeerTls
from spegel_consul.join import Bootstrap
from spegel_consul.join.bootstrap_kind import BootstrapKind
from spegel_consul.join.fallback import SeveralBootstraps
from spegel_consul.join.join_settings import BootstrapSettings
from spegel_consul.join.polled import PolledBootstrap
from spegel_consul.join.sources.consul_catalog import CatalogBootstrap
from spegel_consul.join.sources.dns import DnsSource
from spegel_consul.join.sources.elected_leader import ElectedBootstrap
from spegel_consul.join.sources.http_document import HttpSource
from spegel_consul.join.sources.nomad_api import NomadClient
from spegel_consul.join.sources.nomad_lock import NomadVarBootstrap
from spegel_consul.join.sources.nomad_service import NomadServiceSource
from spegel_consul.join.sources.peer_file import LOOK_EVERY, FileSource
from spegel_consul.join.sources.static import StaticBootstrap


def assemble(
    settings: BootstrapSettings,
    me: LeaderRecord,
    router_port: int,
    alone: Callable[[], bool],
    *,
    candidate: Candidate | None = None,
    catalog: CatalogWatch | None = None,
    nomad: NomadClient | None = None,
    nomad_var: NomadVarBootstrap | None = None,
    tls: PeerTls | None = None,
) -> Bootstrap:
    """The bootstrap of ``settings``; a kind is left out if its part (candidate, catalog, Nomad client, ...) is None.

    ``router_port`` is the port of peers that are named only by an IP address; ``alone``: see SeveralBootstraps;
    ``tls``: see HttpSource.
    """

    def bootstraps() -> Iterator[tuple[str, Bootstrap]]:
        for kind in settings.kinds:
            match kind:
                case BootstrapKind.CONSUL if candidate is not None:
                    yield kind.value, ElectedBootstrap(candidate, catalog)
                case BootstrapKind.CATALOG if catalog is not None:
                    yield kind.value, CatalogBootstrap(catalog, me.to_peer())
                case BootstrapKind.NOMAD_VAR if nomad_var is not None:
                    yield kind.value, nomad_var
                case BootstrapKind.NOMAD_SERVICE if nomad is not None:
                    source = NomadServiceSource(nomad, settings.nomad_service, me.to_peer(), me.alloc_id)
                    yield kind.value, PolledBootstrap(source)
                case BootstrapKind.HTTP:
                    for url in settings.http_urls:
                        http = HttpSource(url, settings.http_cert_dir, tls)
                        yield f"http {http.name}", PolledBootstrap(http)
                case BootstrapKind.DNS if settings.dns_domain:
                    yield kind.value, PolledBootstrap(DnsSource(settings.dns_domain, router_port, settings.dns_server))
                case BootstrapKind.STATIC:
                    yield kind.value, StaticBootstrap(settings.static_peers)
                case BootstrapKind.FILE if settings.file is not None:
                    yield kind.value, PolledBootstrap(FileSource(settings.file), every=LOOK_EVERY)

    found = list(bootstraps())
    return found[0][1] if len(found) == 1 else SeveralBootstraps(found, me.to_peer(), alone)

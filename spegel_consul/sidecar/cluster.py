"""Cluster: registration, catalog and election in Consul, and the way into the ring.

These stages start last, because they lead peers to this node, and they stop first, so that peers stop asking before the
registry refuses them. Without Consul's address only the join is left. A new kind of registration or watch belongs
here; a new source of bootstrap peers belongs to :mod:`spegel_consul.join.sources`.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack

from spegel_consul import __version__
from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.catalog.catalog_registries import CatalogRegistries
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.leader_service import LeaderService
from spegel_consul.consul.catalog.network_coordinates import NetworkCoordinates
from spegel_consul.consul.catalog.node_place import NodePlace
from spegel_consul.consul.catalog.registration import Registration
from spegel_consul.consul.catalog.service_definitions import (
    REGISTRY,
    ROUTER,
    ServiceMode,
    place_meta,
    spegel_services,
)
from spegel_consul.consul.consul_lock import ConsulLock
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.endpoints import identity
from spegel_consul.http.peer_tls import is_plain_to_own
from spegel_consul.join import Bootstrap, KnownRouters
from spegel_consul.join.assemble import assemble
from spegel_consul.join.bootstrap_kind import BootstrapKind, elector
from spegel_consul.join.catalog_routers import CatalogRouters
from spegel_consul.join.keeper import RingKeeper
from spegel_consul.join.remembered_members import Remembered
from spegel_consul.join.sources.nomad_lock import NomadVarBootstrap
from spegel_consul.registry.mirror.providers.address_policy import PeerPolicy
from spegel_consul.ring import Router
from spegel_consul.ring.restartable import ReplaceableRouter
from spegel_consul.sidecar.content import Content
from spegel_consul.sidecar.prepare import PreparedNode
from spegel_consul.sidecar.settings import Settings
from spegel_consul.sidecar.stages import Stages
from spegel_consul.web.node_views import Consul, Node


async def start_cluster(
    settings: Settings, node: PreparedNode, content: Content, stages: Stages, resources: AsyncExitStack
) -> None:
    """Start the stages from the registration to the keeper of the ring."""
    router, view = content.router, content.view
    me = _record(settings, node, router)
    candidate = catalog = None
    if node.consul is not None:
        candidate, catalog = await _enter_consul(settings, node.consul, me, node, view, stages, content.registries)
    nomad_var = None
    if node.nomad is not None:
        await resources.enter_async_context(node.nomad)
        if BootstrapKind.NOMAD_VAR in settings.bootstrap.kinds:
            nomad_var = NomadVarBootstrap(
                node.nomad, settings.bootstrap.nomad_var, me, obstacle=node.address_watch.observed
            )
            if elector(settings.bootstrap.kinds) is BootstrapKind.NOMAD_VAR:  # otherwise it is a fall-back
                view.nomad_candidate = nomad_var.candidate
    bootstrap = assemble(
        settings.bootstrap,
        me,
        node.router_port,
        lambda: not router.members(),
        candidate=candidate,
        catalog=catalog,
        nomad=node.nomad,
        nomad_var=nomad_var,
        tls=node.tls,
    )
    known_routers = CatalogRouters(catalog) if catalog is not None else None
    await _join(settings, bootstrap, known_routers, router, view, stages)


def _record(settings: Settings, node: PreparedNode, router: Router) -> LeaderRecord:
    """The record that this node writes when it leads; any node may read its ``/id`` there."""
    me = router.me
    assert me.id is not None
    return LeaderRecord(
        me.id,
        tuple(f"{addr}/p2p/{me.id}" for addr in me.addrs),
        node=settings.node_name,
        http=f"{node.metrics_url if is_plain_to_own(node.tls) else node.registry_url}{identity.PATH}",
        registry=node.registry_url,
        version=__version__,
        alloc_id=os.environ.get("NOMAD_ALLOC_ID"),
    )


async def _enter_consul(
    settings: Settings,
    client: ConsulClient,
    me: LeaderRecord,
    node: PreparedNode,
    view: Node,
    stages: Stages,
    registries: CatalogRegistries,
) -> tuple[Candidate | None, CatalogWatch | None]:
    place = NodePlace(client, node.here, settings.place) if settings.place_from_consul else None
    if place is not None:
        await stages.start("place", place.run)
    services = spegel_services(
        node=settings.node_name,
        address=node.address,
        peer_id=me.peer_id,
        router_addr=me.addrs[0],
        version=__version__,
        registry_port=node.registry_port,
        router_port=node.router_port,
        metrics_port=node.metrics_port,
        scheme=node.scheme,
        verifies_clients=not is_plain_to_own(node.tls) and node.tls is not None and node.tls.verifies_clients,
        secondary=node.secondary,
        metrics_bound=settings.metrics_addr.host,
        place=node.here.place,
        leader_key=settings.election.key,
    )
    mode, alloc_id = settings.consul_service, os.environ.get("NOMAD_ALLOC_ID")
    registration = catalog = candidate = None
    if mode is not ServiceMode.OFF:
        registration = Registration(
            client,
            services.always,
            external=mode is ServiceMode.EXTERNAL,
            alloc_id=alloc_id if mode is ServiceMode.AUTO else None,
        )
        if place is not None:
            describe = registration.describe
            place.changed = lambda new: describe({"place": "", "zone": "", **place_meta(new)})
        await stages.start("registration", registration.run)
    if mode is not ServiceMode.OFF or BootstrapKind.CATALOG in settings.bootstrap.kinds:
        catalog = CatalogWatch(client, ROUTER, settings.election.key)
        await stages.start("catalog", catalog.run)
        if place is not None and view.nearness is not None:
            coordinates = NetworkCoordinates(client, node.here, place, catalog)
            view.nearness.estimate = coordinates.estimate
            await stages.start("coordinates", coordinates.run)
    if settings.peer_policy is PeerPolicy.CATALOG:
        registries.watch = CatalogWatch(client, REGISTRY, settings.election.key)
        await stages.start("registries", registries.watch.run)
    if BootstrapKind.CONSUL not in settings.bootstrap.kinds:
        view.consul = Consul(client, None, catalog, registration, registries.watch)
        return None, catalog
    leader_service = LeaderService(client, services.leader) if mode is not ServiceMode.OFF else None
    candidate = Candidate(
        ConsulLock(client, settings.election, leader_service),
        me,
        cluster_size=lambda: len(catalog.members) if catalog is not None else 0,
        obstacle=node.address_watch.observed,
    )
    view.consul = Consul(client, candidate, catalog, registration, registries.watch)
    await stages.start("election", candidate.run)
    return candidate, catalog


async def _join(
    settings: Settings,
    bootstrap: Bootstrap,
    known_routers: KnownRouters | None,
    router: ReplaceableRouter,
    view: Node,
    stages: Stages,
) -> None:
    view.keeper = keeper = RingKeeper(
        router,
        bootstrap,
        known_routers=known_routers,
        remembered=Remembered(settings.data_dir),
        on_leader_change=settings.on_leader_change,
    )
    await stages.start("bootstrap", bootstrap.run)
    await stages.start("keeper", keeper.run)

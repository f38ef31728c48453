"""Content: the store, the ring's router, the registry and the web port, started from the inside out.

The registry answers before the ring's members or Consul can name this node, because a peer that asks a registry before
it listens takes the node for dead. The ring is told of a stop at once, beside the stages that stop in reverse,
so that peers look elsewhere while the transfers in flight end. A new part that reads or serves content belongs here;
:mod:`spegel_consul.sidecar.cluster` has the parts that talk to Consul and find members.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
import trio

from spegel_consul import log as log_level
from spegel_consul.consul.catalog.catalog_registries import CatalogRegistries
from spegel_consul.endpoints import dial_back, identity
from spegel_consul.http.peer_client import PeerClient
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.http.server.connection import standing
from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.metrics.sidecar_metrics import CONTENT, Metrics
from spegel_consul.registry.asgi_path import ContentApp
from spegel_consul.registry.content_cache import ByteCache
from spegel_consul.registry.fast_path import FastPath
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.mirror_peers import MirrorParts
from spegel_consul.registry.mirror.providers.address_policy import PeerPolicy, any_node, one_of
from spegel_consul.registry.mirror.tags.upstream_tags import UpstreamTags
from spegel_consul.registry.mirror.trace import Trace, as_fields
from spegel_consul.registry.plan import Planner
from spegel_consul.registry.registry_app import build_app
from spegel_consul.registry.uploads import Uploads
from spegel_consul.ring import Router
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.ring_files import RingFiles
from spegel_consul.ring.restartable import ReplaceableRouter
from spegel_consul.ring.router import KadRouter
from spegel_consul.runtimes.containerd_sockets import SocketSearch
from spegel_consul.sidecar.open_files import raise_limit, shares
from spegel_consul.sidecar.prepare import PreparedNode
from spegel_consul.sidecar.settings import Settings
from spegel_consul.sidecar.stages import Runnable, Stages
from spegel_consul.store import Store
from spegel_consul.store.inventory import CountedStore
from spegel_consul.store.layout import LayoutStore
from spegel_consul.store.union import UnionStore
from spegel_consul.web import monitoring
from spegel_consul.web.copies.own_copies import OwnCopies
from spegel_consul.web.node_views import Node, PreheatRules
from spegel_consul.zerocopy.spool import SpoolSpace

log = structlog.get_logger(__name__)

_FAREWELL = 1.0  # seconds; the ring's farewell runs beside the stop and delays only its end


@dataclass(frozen=True, slots=True)
class Content:
    """The parts that the cluster's stages connect to. ``registries``: the registries that the catalog permits."""

    router: ReplaceableRouter
    registries: CatalogRegistries
    view: Node


async def start_content(
    settings: Settings, node: PreparedNode, stages: Stages, resources: AsyncExitStack, stopping: trio.Event
) -> Content:
    """Start the stages from the store to the two ports. Raises RingError."""
    if node.consul is not None:
        await resources.enter_async_context(node.consul)
    socket_of = _containerd_socket(settings.containerd_sock)
    store = _store(settings, socket_of)
    resources.callback(node.router.close)
    files = shares(raise_limit())
    router = ReplaceableRouter(_router_maker(settings, node, RingFiles(files.ring)))
    await stages.start("store", store.run)
    await stages.start("ring", router.run)
    await stages.start("announcer", _announcer(store, router))
    await stages.start("farewell", _farewell(router, stopping), gently=stopping)
    await stages.start("address", node.address_watch.run)

    if node.credentials is not None:
        if settings.peer_policy is PeerPolicy.ANY:
            log.warning("the password is shown to any peer that the ring names: give --peer-policy=catalog too")
        if node.tls is None or node.tls.encryption is Encryption.PREFER:
            log.warning(
                "passwords travel in clear text: give --peer-tls=require, or --tls-cert-file and --tls-key-file"
            )
        await stages.start("credentials", node.credentials.run)
    if node.tls is not None:
        await stages.start("certificates", node.tls.run)
    metrics = Metrics()
    peers = PeerClient(settings.peer_limits, node.tls)
    resources.callback(peers.close)
    await stages.start("idle connections", peers.run)
    registries = CatalogRegistries()
    permits = one_of(registries.known) if settings.peer_policy is PeerPolicy.CATALOG else any_node
    spool_space = SpoolSpace(settings.data_dir)
    mirror = Mirror(
        MirrorParts(
            router,
            peers,
            metrics,
            settings.mirror,
            node.credentials,
            permits,
            spool_space,
            store,
            node.here,
            upstream_tags=UpstreamTags() if settings.tag_check else None,
        )
    )
    await stages.start("following", mirror.run)
    view = Node(
        name=settings.node_name,
        registry=(node.address, node.registry_port),
        metrics_address=(node.address, node.metrics_port),
        store_kind="containerd" if settings.layout_path is None else "layout",
        store=store,
        ring=router,
        traces=mirror.traces,
        penalties=mirror.peers.penalties,
        metrics=metrics,
        tls=node.tls,
        credentials=node.credentials,
        allowed_hosts=settings.web_allowed_hosts,
        followers=mirror.followers,
        follows=mirror.peers.follows,
        nearness=mirror.peers.nearness,
        preheat=_preheat_rules(settings, socket_of),
        uploads=Uploads(settings.max_upload, settings.upload_rate),
        address_problem=lambda: node.address_watch.problem,
    )
    await _serve(settings, node, stages, view, mirror, ConnectionLimits(files.http))
    mirror.traces.on_end = _log_trace
    return Content(router, registries, view)


def _router_maker(settings: Settings, node: PreparedNode, files: RingFiles) -> Callable[[KadRouter | None], KadRouter]:
    def make_router(before: KadRouter | None) -> KadRouter:
        # each generation listens on a copy of the socket, and closes only that
        advertise = (node.router_address, node.router_port)
        host = Libp2pHost(
            node.identity, bind=node.router.dup(), advertise=advertise, secondary=node.secondary, files=files
        )
        return KadRouter(
            host,
            registry=(node.address, node.registry_port),
            secondary=node.secondary,
            follow_chain=settings.follow_chain if settings.mirror.follow else 0,
            successor_of=before,
            here=node.here,
        )

    return make_router


async def _serve(
    settings: Settings, node: PreparedNode, stages: Stages, view: Node, mirror: Mirror, limits: ConnectionLimits
) -> None:
    """Serve the registry and the web port."""
    store, metrics, router = view.store, view.metrics, view.ring
    planner = Planner(
        store,
        settings.images,
        node.credentials,
        follow=settings.mirror.follow,
        own_age=mirror.peers.tag_ages.own,
        tag_max_age=settings.mirror.tag_max_age,
    )
    cache = ByteCache(is_there=lambda digest: store.describe(digest) is not None)
    fast_path = FastPath(planner, store, mirror, cache, metrics, view.uploads)
    others = build_app(view.problem, view.warnings)
    dial_back.add_to(others)
    identity.add_to(others, lambda: router.me)
    content = ContentApp(others, planner, store, mirror, metrics, view.uploads)
    called = frozenset({node.address, node.secondary or node.address})
    await stages.serve("registry", content, node.registry, fast_path, node.tls, limits, called)
    if node.runtime is not None:
        await stages.serve("runtime", content, node.runtime, fast_path, only_own=True)
    # a short drain, because a client that follows events never ends its request
    copies = OwnCopies(view)
    await stages.start("copies", copies.run)
    await stages.serve("web", monitoring.build_app(view, copies), node.metrics, limits=limits, drain_timeout=1.0)
    metrics.followers.set_function(lambda: len(mirror.followers))
    metrics.http_inflight.set_function(
        lambda: {
            (handler,): float(count + (fast_path.inflight if handler == CONTENT else 0))
            for handler, count in content.inflight.items()
        }
    )
    metrics.open_connections.set_function(
        lambda: {
            ("registry",): float(standing[node.registry_port]),
            ("metrics",): float(standing[node.metrics_port]),
        }
    )


def _store(settings: Settings, socket_of: Callable[[], Path]) -> CountedStore:
    if settings.layout_path is not None:
        return LayoutStore(settings.layout_path, settings.images.accepts)
    from spegel_consul.store.containerd.absence import Absence
    from spegel_consul.store.containerd.containerd_store import ContainerdStore

    absence = Absence()
    stores = [
        ContainerdStore(
            socket_of,
            namespace,
            settings.containerd_content_path,
            settings.images.accepts,
            expected=len(settings.containerd_namespaces) == 1,
            absence=absence,
        )
        for namespace in settings.containerd_namespaces
    ]
    return stores[0] if len(stores) == 1 else UnionStore(stores)


def _preheat_rules(settings: Settings, socket_of: Callable[[], Path]) -> PreheatRules | None:
    if not settings.preheat:
        return None
    from spegel_consul.runtimes.pulls.node_runtimes import NodeRuntimes

    runtimes = NodeRuntimes(
        socket_of,
        settings.containerd_namespaces,
        settings.docker_sock,
        settings.containerd_registry_config_path,
    )
    return PreheatRules(runtimes, settings.images.accepts, settings.peer_policy is PeerPolicy.CATALOG)


def _containerd_socket(told: Path | None) -> Callable[[], Path]:
    """One search for the node, so that stores and preheats use the same containerd."""
    return SocketSearch().look if told is None else lambda: told


def _announcer(store: Store, router: Router) -> Runnable:
    """A task that announces the store's content to the ring."""

    async def announce(*, task_status: trio.TaskStatus[None]) -> None:
        async with store.watch() as changes:
            task_status.started()
            async for changed in changes:
                await router.announce(changed.added, changed.removed)
                del changed  # the first one has all keys of the node

    return announce


def _farewell(router: Router, stopping: trio.Event) -> Runnable:
    """A task that withdraws all announcements from the ring as soon as the stop begins."""

    async def say(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await stopping.wait()
        with trio.move_on_after(_FAREWELL):
            await router.leave()

    return say


def _log_trace(trace: Trace) -> None:
    """Log one line for a mirrored request; only at level debug, because making the line costs time."""
    if log_level.level.current == "debug":
        facts = {name: value for name, value in trace.to_json().items() if value is not None and name != "number"}
        log.debug("mirrored", **{**facts, **as_fields(trace.trace_headers)})

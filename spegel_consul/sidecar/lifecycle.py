# The composition root: the only place that knows all rooms.
#
# Whatever can be wrong with the settings or the machine shows before anything starts: sockets are bound,
# the identity is read, addresses are worked out.  Then the stages start from the inside out - store, ring,
# registry, bootstrap, catalog - so that nobody is told of us before we can answer, and they stop in reverse,
# so that nobody is told of us any more when we begin to refuse: the catalog forgets us, the lock is given
# up, and then the transfers in flight have their time to end.  The ring is told at once, beside all of that.

"""Builds the rooms, starts them in order and stops them in reverse."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spegel_consul import __version__
from spegel_consul import log as log_level
from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.catalog.catalog_registries import CatalogRegistries
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.leader_service import LeaderService
from spegel_consul.consul.catalog.registration import Registration, ServiceMode
from spegel_consul.consul.catalog.service_definitions import REGISTRY, ROUTER, spegel_services
from spegel_consul.consul.election.candidate import Candidate
from spegel_consul.consul.election.leader_record import LeaderRecord
from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints import dial_back, identity
from spegel_consul.endpoints.check import Status
from spegel_consul.http.basic_auth import Credentials, CredentialsError
from spegel_consul.http.peer_client import PeerClient
from spegel_consul.http.server.connection import standing
from spegel_consul.http.server.connection_limits import ConnectionLimits, raise_limit
from spegel_consul.http.server.listen import ListenError, listen
from spegel_consul.http.tls import Tls, TlsError
from spegel_consul.join import Bootstrap, KnownRouters
from spegel_consul.join.assemble import assemble
from spegel_consul.join.catalog_routers import CatalogRouters
from spegel_consul.join.join_settings import BootstrapKind
from spegel_consul.join.keeper import RingKeeper
from spegel_consul.join.remembered_members import Remembered
from spegel_consul.join.sources.nomad_api import NomadClient
from spegel_consul.metrics.sidecar_metrics import CONTENT, Metrics
from spegel_consul.peers import RingError
from spegel_consul.preflight import node_checks
from spegel_consul.preflight.node_address import NoAddress, advertised
from spegel_consul.registry.asgi_path import ContentApp
from spegel_consul.registry.content_cache import ByteCache
from spegel_consul.registry.fast_path import FastPath
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.providers.provider_policy import PeerPolicy, any_node, one_of
from spegel_consul.registry.mirror.trace import Trace, as_fields
from spegel_consul.registry.plan import Planner
from spegel_consul.registry.registry_app import build_app
from spegel_consul.ring import Router
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.restartable import ReplaceableRouter
from spegel_consul.ring.router import KadRouter
from spegel_consul.runtimes.containerd_sockets import SocketSearch, find_socket
from spegel_consul.sidecar import watchdog
from spegel_consul.sidecar.settings import Settings
from spegel_consul.sidecar.stages import Runnable, Stages, attempt
from spegel_consul.signals import stop_signals
from spegel_consul.store import Store
from spegel_consul.store.containerd.containerd_store import ContainerdStore
from spegel_consul.store.inventory import CountedStore
from spegel_consul.store.layout import LayoutStore
from spegel_consul.store.union import UnionStore
from spegel_consul.web import metric_readings, web_app
from spegel_consul.web.node_views import Consul, Node
from spegel_consul.zerocopy.spool import SpoolSpace

log = structlog.get_logger(__name__)


_SAME_SIGNAL = 1.0  # seconds
_FAREWELL = 1.0  # it delays nothing but the very end


class StartError(Exception):
    """The sidecar can't start; the message is one line that says why."""


async def run(settings: Settings) -> None:
    """Run until one of ``stop_signals()``. Raises StartError."""
    try:
        node = _prepare(settings)
    except (ListenError, NoAddress, RingError, TlsError, CredentialsError, ValueError) as exc:
        raise StartError(str(exc)) from None
    # listened to until all is done, so that no signal cuts the goodbye short
    with trio.open_signal_receiver(*stop_signals()) as signals:
        await _run(settings, node, signals)
        log.info("stopped")


async def _run(settings: Settings, node: _Node, signals: AsyncIterator[int]) -> None:
    problem: RingError | None = None
    # whatever a task uses to say goodbye with outlives the nursery, however that ends
    async with AsyncExitStack() as resources, trio.open_nursery() as nursery:
        stopping = trio.Event()
        nursery.start_soon(_on_signal, signals, stopping, nursery.cancel_scope)
        if settings.heartbeat is not None:
            nursery.start_soon(watchdog.beat, settings.heartbeat, settings.hang_timeout)
        stages = Stages(nursery)
        try:
            # who is asked to stop before it has started does not start any further
            with trio.CancelScope() as starting:
                nursery.start_soon(_cancel_at, stopping, starting)
                await _start(settings, node, stages, resources, stopping)
        except RingError as exc:
            problem = exc
        if problem is None:
            if not starting.cancelled_caught:
                log.info("started", registry=node.registry_url, router=str(node.router_port), version=__version__)
                if not settings.skip_preflight:
                    nursery.start_soon(attempt, "preflight", partial(_tell_findings, settings, node))
            await stopping.wait()
            log.info("stopping")
        await stages.stop()
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise StartError(str(problem))


@dataclass(frozen=True, slots=True)
class _Node:
    """What was found out about this node before anything started."""

    identity: Ed25519PrivateKey
    registry: socket.socket
    router: socket.socket
    metrics: socket.socket
    address: str
    also: str | None
    """Its address of the other family, if it has both."""
    router_address: str
    consul: ConsulClient | None
    nomad: NomadClient | None
    tls: Tls | None
    credentials: Credentials | None

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
    def host(self) -> str:
        return f"[{self.address}]" if ":" in self.address else self.address

    @property
    def registry_url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.registry_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.host}:{self.metrics_port}"

    @property
    def scheme(self) -> str:
        return "https" if self.tls is not None else "http"


def _prepare(settings: Settings) -> _Node:
    node = _Node(
        load_or_create(settings.data_dir),
        listen(settings.registry_addr, "--registry-addr"),
        listen(settings.router_addr, "--router-addr"),
        listen(settings.metrics_addr, "--metrics-addr"),
        advertised(settings.advertise_addr, settings.registry_addr.host),
        settings.advertise_addr[1] if len(settings.advertise_addr) > 1 else None,
        advertised(settings.advertise_addr, settings.router_addr.host),
        ConsulClient(settings.consul) if settings.consul is not None else None,
        NomadClient(settings.bootstrap.nomad) if settings.bootstrap.nomad is not None else None,
        Tls(settings.tls) if settings.tls is not None else None,
        Credentials(settings.basic_auth_file) if settings.basic_auth_file is not None else None,
    )
    finding = node_checks.address_check(node.address, settings.registry_addr.host)
    if finding.fatal and not settings.skip_preflight:
        raise StartError(f"{finding.says}: {finding.fix} (or --skip-preflight)")
    return node


async def _start(
    settings: Settings, node: _Node, stages: Stages, resources: AsyncExitStack, stopping: trio.Event
) -> None:
    metrics = Metrics()
    store = _store(settings)
    resources.callback(node.router.close)

    def make_router(before: KadRouter | None) -> KadRouter:
        # each generation listens on a copy of the socket, and closes only that
        advertise = (node.router_address, node.router_port)
        host = Libp2pHost(node.identity, bind=node.router.dup(), advertise=advertise, also=node.also)
        return KadRouter(host, registry=(node.address, node.registry_port), also=node.also, successor_of=before)

    router = ReplaceableRouter(make_router)
    await stages.start("store", store.run)
    await stages.start("ring", router.run)
    await stages.start("announcer", _announcer(store, router))
    await stages.start("farewell", _farewell(router, stopping), gently=stopping)

    if node.credentials is not None:
        if settings.peer_policy is PeerPolicy.ANY:
            log.warning("the password is shown to whoever the ring names: give --peer-policy=catalog too")
        if node.tls is None:
            log.warning("passwords travel in clear text: give --tls-cert-file and --tls-key-file too")
        await stages.start("credentials", node.credentials.run)
    if node.tls is not None:
        await stages.start("certificates", node.tls.run)
    peers = PeerClient(settings.peer_limits, node.tls)
    resources.callback(peers.close)
    registries = CatalogRegistries()
    permits = one_of(registries.known) if settings.peer_policy is PeerPolicy.CATALOG else any_node
    mirror = Mirror(router, peers, metrics, settings.mirror, node.credentials, permits, SpoolSpace(settings.data_dir))
    planner = Planner(store, settings.images, node.credentials)
    fast_path = FastPath(planner, store, mirror, ByteCache(), metrics)
    view = Node(
        name=settings.node_name,
        registry=(node.address, node.registry_port),
        metrics_address=(node.address, node.metrics_port),
        store_kind="containerd" if settings.layout_path is None else "layout",
        store=store,
        ring=router,
        traces=mirror.traces,
        penalties=mirror.penalties,
        metrics=metrics,
        tls=node.tls,
        credentials=node.credentials,
        allowed_hosts=settings.web_allowed_hosts,
    )
    others = build_app(view.problem, view.warnings)
    dial_back.add_to(others)
    identity.add_to(others, lambda: router.me)
    content = ContentApp(others, planner, store, mirror, metrics)  # type: ignore[arg-type]
    called = frozenset({node.address, node.also or node.address})
    limits = ConnectionLimits(raise_limit())
    await stages.serve("registry", content, node.registry, fast_path, node.tls, limits, called)  # type: ignore[arg-type]
    # who follows events would keep a stop waiting
    await stages.serve("web", web_app.build_app(view), node.metrics, limits=limits, drain_timeout=1.0)
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
    mirror.traces.on_end = _tell
    await stages.start("loop lateness", partial(metric_readings.watch_the_loop, metrics))
    tell_level = partial(log_level.follow_signal, lambda level: log.warning("log level changed", level=level))
    await stages.start("log level", tell_level)

    me = _record(settings, node, router)
    candidate = catalog = None
    if node.consul is not None:
        client = await resources.enter_async_context(node.consul)
        candidate, catalog = await _enter_consul(settings, client, me, node, view, stages, registries)
    if node.nomad is not None:
        await resources.enter_async_context(node.nomad)
    bootstrap = assemble(
        settings.bootstrap,
        me,
        node.router_port,
        lambda: not router.members(),
        candidate=candidate,
        catalog=catalog,
        nomad=node.nomad,
        trust=node.tls.client if node.tls is not None else None,
    )
    known_routers = CatalogRouters(catalog) if catalog is not None else None
    await _join(settings, bootstrap, known_routers, router, view, stages)


def _record(settings: Settings, node: _Node, router: Router) -> LeaderRecord:
    """What this node says of itself when it leads."""
    me = router.me
    assert me.id is not None
    return LeaderRecord(
        me.id,
        tuple(f"{addr}/p2p/{me.id}" for addr in me.addrs),
        node=settings.node_name,
        http=f"{node.registry_url if node.tls is not None else node.metrics_url}{identity.PATH}",
        registry=node.registry_url,
        version=__version__,
        alloc_id=os.environ.get("NOMAD_ALLOC_ID"),
    )


async def _enter_consul(
    settings: Settings,
    client: ConsulClient,
    me: LeaderRecord,
    node: _Node,
    view: Node,
    stages: Stages,
    registries: CatalogRegistries,
) -> tuple[Candidate | None, CatalogWatch | None]:
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
        verifies_clients=node.tls is not None and node.tls.verifies_clients,
        also=node.also,
        metrics_bound=settings.metrics_addr.host,
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
        await stages.start("registration", registration.run)
    if mode is not ServiceMode.OFF or BootstrapKind.CATALOG in settings.bootstrap.kinds:
        catalog = CatalogWatch(client, ROUTER)
        await stages.start("catalog", catalog.run)
    if settings.peer_policy is PeerPolicy.CATALOG:
        registries.watch = CatalogWatch(client, REGISTRY)
        await stages.start("registries", registries.watch.run)
    if BootstrapKind.CONSUL not in settings.bootstrap.kinds:
        view.consul = Consul(client, None, catalog, registration, registries.watch)
        return None, catalog
    candidate = Candidate(
        client,
        me,
        settings.election,
        crowd=lambda: len(catalog.members) if catalog is not None else 0,
        leader_service=LeaderService(client, services.leader) if mode is not ServiceMode.OFF else None,
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


def _store(settings: Settings) -> CountedStore:
    if settings.layout_path is not None:
        return LayoutStore(settings.layout_path, settings.images.accepts)
    socket_of = _containerd_socket(settings.containerd_sock)
    stores = [
        ContainerdStore(
            socket_of,
            namespace,
            settings.containerd_content_path,
            settings.images.accepts,
            expected=len(settings.containerd_namespaces) == 1,
        )
        for namespace in settings.containerd_namespaces
    ]
    return stores[0] if len(stores) == 1 else UnionStore(stores)


def _containerd_socket(told: Path | None) -> Callable[[], Path]:
    """One search for all namespaces, so that they are those of one containerd."""
    return SocketSearch().look if told is None else lambda: told


def _announcer(store: Store, router: Router) -> Runnable:
    """Tells the ring what the store can serve."""

    async def announce(*, task_status: trio.TaskStatus[None]) -> None:
        async with store.watch() as changes:
            task_status.started()
            async for changed in changes:
                await router.announce(changed.added, changed.removed)

    return announce


def _farewell(router: Router, stopping: trio.Event) -> Runnable:
    """Tells the ring, as soon as this node is to stop, that it has nothing any more."""

    async def say(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await stopping.wait()
        with trio.move_on_after(_FAREWELL):
            await router.leave()

    return say


async def _tell_findings(settings: Settings, node: _Node) -> None:
    """Say what is wrong with this node; what is wrong with the runtimes' files only ``preflight`` can see."""
    sock = settings.containerd_sock or await in_thread(find_socket)
    subject = node_checks.Subject(
        address=node.address,
        registry_port=node.registry_port,
        bound=settings.registry_addr.host,
        containerd_sock=sock if settings.layout_path is None else None,
        namespaces=settings.containerd_namespaces,
        content_path=settings.containerd_content_path,
        consul=settings.consul,
        leader_key=settings.election.key,
        tls=node.tls is not None,
    )
    for check in await node_checks.run(subject):
        say = log.debug if check.status is Status.OK else log.warning
        say("preflight", check=check.name, status=check.status.value, says=check.says, fix=check.fix or None)


def _tell(trace: Trace) -> None:
    """One line for each mirrored request, for those who log at debug; nobody else pays for making it."""
    if log_level.level.current == "debug":
        facts = {name: value for name, value in trace.to_json().items() if value is not None and name != "number"}
        log.debug("mirrored", **{**facts, **as_fields(trace.trace_headers)})


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _on_signal(signals: AsyncIterator[int], stopping: trio.Event, everything: trio.CancelScope) -> None:
    """The first signal asks for an orderly stop, a later one for a quick one.

    What follows at once is the same one: systemd and terminals signal the guard and us, and the guard passes it on.
    """
    asked_at = -math.inf
    async for _ in signals:
        if not stopping.is_set():
            asked_at = trio.current_time()
            stopping.set()
        elif trio.current_time() > asked_at + _SAME_SIGNAL:
            everything.cancel()

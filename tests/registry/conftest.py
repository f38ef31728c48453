from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes.memory_store import MemoryStore

from spegel_consul.http.basic_auth import Credentials
from spegel_consul.http.peer_client import PeerClient, PeerLimits
from spegel_consul.http.peer_tls import PeerTls, is_plain_to_own
from spegel_consul.http.server.connection import Link
from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.http.server.listen import ListenAddress, listen
from spegel_consul.http.server.serve import serve
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.peers import PeerInfo, Provider, peer_id_of_ed25519, peer_id_to_text
from spegel_consul.registry.asgi_path import ContentApp
from spegel_consul.registry.content_cache import ByteCache
from spegel_consul.registry.fast_path import FastPath
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.mirror_peers import MirrorParts, MirrorSettings
from spegel_consul.registry.mirror.providers.address_policy import Permits, any_node
from spegel_consul.registry.mirror.tags.upstream_tags import UpstreamTags
from spegel_consul.registry.plan import Planner
from spegel_consul.registry.registry_app import build_app
from spegel_consul.registry.uploads import Uploads
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict, What

from .image import LAYER, MANIFEST

LIMITS = PeerLimits(connect=0.5, first_byte=0.5, stall=0.5)


class FileStore(MemoryStore):
    """Content in memory that has files too, as a runtime's has; without them the fast path has nothing to send."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        directory.mkdir()

    def file(self, digest: Digest) -> str | None:
        data = self._bytes.get(digest)
        path = self._directory / digest.encoded
        if data is not None and not path.exists():
            path.write_bytes(data)
        return str(path)


class CountedFastPath:
    """The fast path, and how often it was taken."""

    def __init__(self, fast_path: FastPath) -> None:
        self._path = fast_path
        self.taken = 0

    def at_once(self, data: bytes, local: bool) -> bytes | None:
        answer = self._path.at_once(data, local)
        self.taken += answer is not None
        return answer

    async def __call__(self, data: bytes, link: Link) -> bool:
        taken = await self._path(data, link)
        self.taken += taken
        return taken


class InOrder(random.Random):
    """Draws the first ones, so that a test knows which provider is asked first."""

    def sample(self, population: Any, k: int, *, counts: Any = None) -> list[Any]:
        return list(population[:k])


ASKER = peer_id_to_text(peer_id_of_ed25519(bytes(32)))


async def alone(group: str, report: ClaimReport) -> Verdict:
    return Verdict(What.ALONE)


class ListRouter:
    """Yields the providers that a test put in, after ``delay`` seconds each; ``None`` never ends.

    Without a delay they come together, as those of one answer do.
    """

    def __init__(self) -> None:
        self.providers: list[Provider | None] = []
        self.delay = 0.0
        self.asked: list[str] = []
        self.reports: list[tuple[str, ClaimReport]] = []
        self.vacant = False
        self.keeper: Callable[[str, ClaimReport], Awaitable[Verdict]] = alone

    @contextmanager
    def lookup(self, key: str, *, count: int = 3) -> Iterator[AsyncIterator[Provider]]:
        self.asked.append(key)

        async def found() -> AsyncIterator[Provider]:
            for provider in self.providers[: count + 1]:
                if self.delay:
                    await trio.sleep(self.delay)
                if provider is None:
                    await trio.sleep_forever()
                else:
                    yield provider

        yield found()

    @property
    def me(self) -> PeerInfo:
        return PeerInfo(ASKER, ())

    def is_vacant(self, group: str) -> bool:
        return self.vacant

    async def claim(self, group: str, report: ClaimReport) -> Verdict:
        """The verdict of ``keeper``, which a test may replace."""
        self.reports.append((group, report))
        return await self.keeper(group, report)

    def knows(self, *nodes: Node | tuple[str, int], secondary: tuple[str, int] | None = None) -> None:
        self.providers = [
            Provider(f"peer{i}", node.address if isinstance(node, Node) else node, secondary)
            for i, node in enumerate(nodes)
        ]


@dataclass
class Node:
    """A registry on loopback, without a ring: its router names whom the test wants it to."""

    address: tuple[str, int]
    store: MemoryStore
    router: ListRouter
    metrics: Metrics
    fast_path: CountedFastPath | None
    mirror: Mirror
    scheme: str = "http"
    stop: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address[0]}:{self.address[1]}"

    def metric(self, name: str, labels: dict[str, str] | None = None) -> float:
        return self.metrics.registry.get_sample_value(name, labels or {}) or 0.0


Start = Callable[..., object]


@pytest.fixture(params=["fast path", "ASGI path"])
async def start_node(nursery: trio.Nursery, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts nodes that answer on one of the two paths, which must not differ."""
    clients: list[PeerClient] = []

    async def start(
        *,
        images: ImageFilter | None = None,
        settings: MirrorSettings | None = None,
        problem: str | None = None,
        keep_alive: float = 100.0,
        tls: PeerTls | None = None,
        host: str = "127.0.0.1",
        only_own: bool = False,
        credentials: Credentials | None = None,
        permits: Permits = any_node,
        limits: ConnectionLimits | None = None,
        store: Any = None,
        router: Any = None,
        follow: bool = True,
        uploads: Uploads | None = None,
        upstream_tags: UpstreamTags | None = None,
    ) -> Node:
        metrics, router = Metrics(), router or ListRouter()
        store = store or FileStore(tmp_path / f"content{len(clients)}")
        clients.append(PeerClient(LIMITS, tls))
        mirror = Mirror(
            MirrorParts(
                router,  # type: ignore[arg-type]
                clients[-1],
                metrics,
                settings or MirrorSettings(),
                credentials,
                permits,
                store=store,
                rng=InOrder(0),
                upstream_tags=upstream_tags,
            )
        )
        await nursery.start(mirror.run)
        planner = Planner(
            store,
            images or ImageFilter(),
            credentials,
            follow=follow,
            own_age=mirror.peers.tag_ages.own,
            tag_max_age=mirror.peers.settings.tag_max_age,
        )
        uploads = uploads or Uploads()
        app = ContentApp(build_app(lambda: problem), planner, store, mirror, metrics, uploads)  # type: ignore[arg-type]
        sock = listen(ListenAddress(host, 0), "--registry-addr")
        fast_path = None
        if request.param == "fast path":
            fast_path = CountedFastPath(FastPath(planner, store, mirror, ByteCache(1 << 20), metrics, uploads))
        scheme = "http" if is_plain_to_own(tls) else "https"
        node = Node(sock.getsockname(), store, router, metrics, fast_path, mirror, scheme=scheme)

        async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            await serve(
                app,  # type: ignore[arg-type]
                sock,
                stop=node.stop.wait,
                fast_path=fast_path,
                drain_timeout=0.5,
                keep_alive=keep_alive,
                tls=tls,
                limits=limits,
                only_own=only_own,
                task_status=task_status,
            )

        await nursery.start(run)
        return node

    yield start
    for client in clients:
        client.close()


Part = bytes | float | Callable[[bytes], Sequence[bytes | float]]


@dataclass
class FakePeer:
    """A TCP server that answers each connection with one of the given scripts."""

    address: tuple[str, int]
    parts: Sequence[Part]
    requests: list[bytes] = field(default_factory=list)


@pytest.fixture
async def start_peer(nursery: trio.Nursery) -> Start:
    async def start(*parts: Part, then: str = "close") -> FakePeer:
        """Reads one request, then sends ``parts``, then closes or hangs.

        A number is a pause; a function is given the request and returns what stands in its place.
        """
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        peer = FakePeer(listeners[0].socket.getsockname(), parts)

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                try:
                    request = b""
                    while b"\r\n\r\n" not in request:
                        data = await stream.receive_some()
                        if not data:
                            return
                        request += data
                    peer.requests.append(request)
                    for part in chain.from_iterable(part(request) if callable(part) else [part] for part in peer.parts):
                        if isinstance(part, bytes):
                            await stream.send_all(part)
                        else:
                            await trio.sleep(part)
                    if then == "hang":
                        await stream.receive_some()
                except trio.BrokenResourceError:
                    pass

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        return peer

    return start


def head(status: int, length: int, *extra: str) -> bytes:
    """The head of a peer's answer."""
    lines: Sequence[str] = (f"HTTP/1.1 {status} X", f"Content-Length: {length}", *extra)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


NOT_FOUND = head(404, 0)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def pair(start_node: Any) -> Any:
    """A node that has the layer and a manifest, and one that knows only of the first."""
    holder, asker = await start_node(), await start_node()
    holder.store.add_content(LAYER)
    holder.store.add_content(b"{}")
    holder.store.add_image("docker.io/library/app:v1", MANIFEST)
    asker.router.knows(holder)
    return holder, asker

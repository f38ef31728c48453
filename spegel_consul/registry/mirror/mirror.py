"""The mirror: content that this node does not have, streamed from peers that have it.

A transfer lives in one nursery: the lookup that yields providers, the questions to them, and the body for the client.
The first good head is used. If its peer fails in mid-body, the fetch goes on for the rest of the bytes from there
(:mod:`spegel_consul.registry.mirror.fetch`). A manifest or a small blob is read and verified before the fetch is over.
The verification of larger ones is in :mod:`spegel_consul.registry.mirror.body.transfer`.

A short cut comes first (:meth:`Mirror.at_once`): a peer that had the blob a moment ago, or other content of its image
if the blob is small, is asked over an idle connection. If it answers soon, there is no fetch, and a nursery is only
opened if the peer fails in mid-body.

A new rule belongs here if it decides which of these ways a request takes, or what a body may cost this node.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import structlog
import trio

from spegel_consul.http.peer_client import PeerResponse
from spegel_consul.metrics.counter import Count
from spegel_consul.oci.errors import BlobUnknown, ManifestUnknown, OCIError, RangeInvalid
from spegel_consul.oci.path import LOAD_HEADER, ContentRequest, Kind, unknown
from spegel_consul.peers import PeerError, Provider
from spegel_consul.registry.mirror.body.transfer import Transfer
from spegel_consul.registry.mirror.fetch import race
from spegel_consul.registry.mirror.followers import Followers
from spegel_consul.registry.mirror.lookup_limit import LookupLimit
from spegel_consul.registry.mirror.mirror_peers import MirrorParts, MirrorPeers, image_of
from spegel_consul.registry.mirror.own_requests import LOOK_EVERY, OwnRequests
from spegel_consul.registry.mirror.promises.whole_images import WholeImages
from spegel_consul.registry.mirror.questions.peer_answer import Answer
from spegel_consul.registry.mirror.tags.upstream_tags import TagCheck
from spegel_consul.registry.mirror.trace import UNKNOWN_REGISTRY, Trace, TraceHeaders, Traces
from spegel_consul.registry.mirror.validate_head import Head, PeerBusy, judge
from spegel_consul.store import Store

log = structlog.get_logger(__name__)

_MOST_LABELS = 100


class Mirror:
    """Finds content at peers and streams it, while :meth:`run` runs."""

    def __init__(self, parts: MirrorParts) -> None:
        self.followers = Followers()
        self.peers = MirrorPeers(parts, self.followers)
        self.traces = Traces()
        self.lookups = LookupLimit()
        self.own_requests = OwnRequests()
        self._counters: dict[str, tuple[Count, Count]] = {}
        self._metrics = parts.metrics
        self._store = parts.store
        self._upstream_tags = parts.upstream_tags
        self.whole_images = WholeImages(self.peers, self.traces, self.lookups, parts.store)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the requests in flight, until cancelled.

        Ends those whose client has left, reports to the keepers of claims, and watches the store for what the runtime
        has verified.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.traces.run)
            if self._store is not None:
                nursery.start_soon(self._look_at_downloads, self._store)
            if self._store is not None and self.peers.settings.runtime_verifies:
                nursery.start_soon(self._watch, self._store)
            if self.peers.follows is not None:
                await nursery.start(self.peers.follows.run)
            task_status.started()

    async def _look_at_downloads(self, store: Store) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            if self.own_requests.any(trio.current_time()):
                downloads = await store.downloads()
                self.own_requests.grow(downloads.growing, trio.current_time())

    async def _watch(self, store: Store) -> None:
        async with store.watch() as changes:
            async for changed in changes:
                self.peers.unverified.arrived(changed.added)

    def checks(self, request: ContentRequest) -> bool:
        """Whether what is sent for the request is checked at the image's registry before."""
        return self._upstream_tags is not None and request.reference.digest is None

    async def checked(self, request: ContentRequest, head: Head, authorization: str | None, client: str) -> Head:
        """Return the head with the result of the check, if the request has one. Raises ManifestUnknown.

        ``authorization``: the client's credentials for the registry, if it sent some; ``client``: as for :meth:`begin`.
        """
        if self._upstream_tags is None or request.reference.digest is not None:
            return head
        result = await self._upstream_tags.check(request.reference, head.digest, authorization)
        self._metrics.tag_checks.labels(result.value).inc()
        if result is TagCheck.MOVED:
            if not client:
                self.peers.tag_ages.not_passed_on(str(request.reference))
            raise unknown(request, f"{request.reference} is not {head.digest} at its registry any more")
        return replace(head, tag_check=result.value)

    def _counted(self, request: ContentRequest) -> tuple[Count, Count]:
        """Return the counters of hits and misses of the request's registry.

        The number of labels is bounded, because clients choose the name of the registry.
        """
        registry = request.reference.registry or UNKNOWN_REGISTRY
        found = self._counters.get(registry)
        if found is None:
            name = registry if len(self._counters) < _MOST_LABELS else "other"
            requests = self._metrics.mirror_requests
            found = requests.labels(name, "hit"), requests.labels(name, "miss")
            if name == registry:
                self._counters[registry] = found
        return found

    @asynccontextmanager
    async def open(
        self, request: ContentRequest, method: str, range_header: str | None, trace: Trace
    ) -> AsyncIterator[Transfer]:
        """Find the content; the transfer can be read inside of the context.

        Raises ManifestUnknown or BlobUnknown if no peer has the content within the deadlines, or the client of
        ``trace`` has too many lookups in flight, and RangeInvalid if the range lies outside of the content. An
        exception that is raised in the context leaves it unchanged.
        """
        with self.counted(request):
            shared = self._shared(request, range_header, trace) if method == "GET" else None
            if shared is not None:
                async with shared:
                    yield shared
                return
            async with race(self.peers, request, method, trace) as fetch:
                try:
                    with self.lookups.one(trace.client, request):
                        answer = await fetch.first(range_header)
                except OCIError:  # the runtime asks upstream
                    if request.reference.digest is None and not trace.client:
                        self.peers.tag_ages.not_passed_on(str(request.reference))
                    raise
                if request.reference.digest is None and not trace.client:
                    self.peers.tag_ages.passed_on(str(request.reference), answer.head)
                async with Transfer(self.peers, fetch, request, answer, trace) as transfer:
                    yield transfer

    @asynccontextmanager
    async def part(
        self, request: ContentRequest, range_header: str, trace: Trace, expected: Head | None = None
    ) -> AsyncIterator[Transfer]:
        """Find one range of a blob, as :meth:`open` does. The answer of a peer that sends the whole blob is dropped.

        ``expected``: the required head, because other parts of the same content have been sent already. Then the
        client's limit of lookups was asked before.
        """
        async with race(self.peers, request, "GET", trace) as fetch:
            with self.lookups.one(trace.client if expected is None else "", request):
                answer = await fetch.first(range_header, expected)
                while not answer.head.partial:  # a server may ignore Range (RFC 9110, 14.2)
                    answer.discard()
                    answer = await fetch.first(range_header, expected)
            async with Transfer(self.peers, fetch, request, answer, trace) as transfer:
                yield transfer

    @contextmanager
    def counted(self, request: ContentRequest) -> Iterator[None]:
        """Count the request that the context answers as a hit, or as a miss if the context ends with an unknown."""
        try:
            yield
        except (ManifestUnknown, BlobUnknown) as exc:
            self.missed(request, exc.message)
            raise
        self.served(request)

    def _shared(self, request: ContentRequest, range_header: str | None, trace: Trace) -> Transfer | None:
        """Return a transfer that shares the held body of another client, if there is one."""
        holding = self.peers.held_bodies.get(request.reference.digest)
        if holding is None or request.kind is not Kind.BLOB or range_header is not None:
            return None
        return Transfer(self.peers, None, request, holding, trace)

    def begin(self, request: ContentRequest, method: str, trace_headers: TraceHeaders = (), client: str = "") -> Trace:
        """Begin the trace of a request; it is the context in which to look the content up.

        ``client``: the address of the client, "" for a client on this machine.
        """
        self.own_requests.note(request, method, client, trio.current_time())
        if method == "GET" and not client and (digest := request.reference.digest) is not None:
            self.peers.own_runtime_asks(digest)
        trace = self.traces.begin(request.reference, request.key, request.kind.value, method, trace_headers)
        trace.client = client
        return trace

    async def at_once(self, request: ContentRequest, range_header: str | None, trace: Trace) -> Transfer | None:
        """Return the transfer of a blob from a recent provider of it, asked over an idle connection.

        The caller enters the transfer. The result is None if there is no such provider, or if it does not give an
        acceptable answer within the hedge interval. Then :meth:`open` asks it again, and others. It is None, too, if
        this node follows a source with other content of the group, because :meth:`open` asks that one first, or if the
        provider is in another zone, because a lookup may name a near one.
        """
        if (shared := self._shared(request, range_header, trace)) is not None:
            return shared
        peers, digest = self.peers, request.reference.digest
        if peers.follows is not None and not trace.client and digest is not None and peers.follows.is_following(digest):
            return None  # a source goes before providers
        suspects, now = peers.suspects.of(request.reference.digest), trio.current_time()
        fit = [
            provider
            for provider in peers.recent_of(request)
            if peers.client.has_idle(provider.registry)
            and peers.may_ask(provider)
            and not peers.penalties.is_slow(provider)
            and not peers.nearness.waits(provider)
            and provider.registry not in suspects
            and not peers.loads.is_busy(provider.registry, now)
        ]
        if fit:
            nearest = peers.nearness.rank(fit[0])
            provider = peers.loads.choose([each for each in fit if peers.nearness.rank(each) == nearest], now)
            peers.loads.asked(provider.registry, now)
            with trio.move_on_after(peers.settings.hedge):
                transfer = await self._ask_at_once(provider, request, range_header, trace)
                if transfer is not None:
                    return transfer
            peers.recent.drop(image_of(request), provider)
        return None

    async def _ask_at_once(
        self, provider: Provider, request: ContentRequest, wanted: str | None, trace: Trace
    ) -> Transfer | None:
        target, headers = self.peers.question(request, wanted, trace.trace_headers)
        asked = time.perf_counter()
        response = await self.peers.client.request_at_once(provider.registry, "GET", target, headers)
        if response is None:
            return None
        times = asked, 0.0, time.perf_counter()
        try:
            head = judge(response, request, wanted)
            peers = self.peers
            peers.loads.told(provider.registry, response.header(LOAD_HEADER), trio.current_time())
            body: bytes | PeerResponse = response
            if self.peers.is_small(head):
                body = await self.peers.read(response, head, provider, "GET")
            elif request.kind is Kind.BLOB and self.peers.sizes.disputes(head.digest, head.size):
                if not await self.peers.can_hold(head):
                    raise PeerError("says another size than a manifest, and others have not been asked")
                head = replace(head, disputed=True)
        except (PeerError, RangeInvalid) as exc:
            response.discard()
            if isinstance(exc, PeerBusy):
                self.peers.refused(provider, exc)
            return None
        except BaseException:
            response.discard()
            raise
        return Transfer(self.peers, None, request, Answer(provider, head, body, times), trace)

    def missed(self, request: ContentRequest, reason: str) -> None:
        """Count a miss: no peer had the content. :meth:`open` calls this itself."""
        self._counted(request)[1].inc()
        self.whole_images.broken(request, reason)

    def served(self, request: ContentRequest) -> None:
        """Count a hit: a transfer has ended well. :meth:`open` calls this itself."""
        self._counted(request)[0].inc()
        self._metrics.mirror_last_success.set_to_current_time()

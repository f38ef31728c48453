"""The mirror: content that this node does not have, streamed from peers that have it.

A transfer lives in one nursery: the lookup that yields providers, the questions to them, and the body for the client.
The first good head is used. If its peer fails in mid-body, the fetch goes on for the rest of the bytes from there
(:mod:`spegel_consul.registry.mirror.fetch`). A manifest or a small blob is read and verified before the fetch is over.
The verification of larger ones is in :mod:`spegel_consul.registry.mirror.body.transfer`.

A short cut comes first (:meth:`Mirror.at_once`): a peer that had the blob a moment ago is asked over an idle
connection. If it answers soon, there is no fetch, and a nursery is only opened if the peer fails in mid-body.

A new rule belongs here if it decides which of these ways a request takes, or what a body may cost this node.
"""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import structlog
import trio
from prometheus_client import Counter

from spegel_consul.disk.threads import in_thread
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.http.peer_client import PeerClient, PeerError, PeerResponse
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown, ManifestUnknown, RangeInvalid
from spegel_consul.oci.media import MAX_MANIFEST_SIZE
from spegel_consul.oci.path import MIRRORED_HEADER, ContentRequest, Kind
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.body.expected_sizes import Sizes
from spegel_consul.registry.mirror.body.held_bodies import HeldBodies
from spegel_consul.registry.mirror.body.transfer import Transfer
from spegel_consul.registry.mirror.fetch import Answer, Fetch
from spegel_consul.registry.mirror.lookup_limit import LookupLimit
from spegel_consul.registry.mirror.providers.penalties import Penalties
from spegel_consul.registry.mirror.providers.provider_cache import RecentProviders
from spegel_consul.registry.mirror.providers.provider_policy import Permits, any_node
from spegel_consul.registry.mirror.providers.suspects import Suspects
from spegel_consul.registry.mirror.trace import UNKNOWN_REGISTRY, Trace, TraceHeaders, Traces
from spegel_consul.registry.mirror.validate import Head, judge
from spegel_consul.ring import Router
from spegel_consul.zerocopy.spool import SpoolSpace

log = structlog.get_logger(__name__)

SMALL = 256 << 10
"""Bytes up to which a blob is read into memory and verified at once, because hashing it is faster than starting a
thread."""

VERIFY_FIRST = 32 << 20
"""Bytes up to which a blob is held until it is verified, unless the settings say otherwise."""

_MOST_LABELS = 100
_DISK = 0.5  # seconds that a disk may take to report its free space


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """``resolve_timeout``: seconds to wait for a provider while none is being asked; ``attempts``: the number of
    providers to ask before giving up; ``hedge``: seconds after which a hedged request goes to another provider;
    ``verify``: whether blobs are hashed (manifests always are); ``verify_first``: bytes up to which a blob is held
    until it is verified, for at most ``hold`` seconds."""

    resolve_timeout: float = 0.2
    attempts: int = 3
    hedge: float = 0.1
    verify: bool = True
    verify_first: int = VERIFY_FIRST
    hold: float = 10.0


class Mirror:
    """Finds content at peers of ``router`` and streams it through ``client``."""

    def __init__(
        self,
        router: Router,
        client: PeerClient,
        metrics: Metrics,
        settings: MirrorSettings | None = None,
        credentials: Credentials | None = None,
        permits: Permits = any_node,
        room: SpoolSpace | None = None,
    ) -> None:
        self.room = room or SpoolSpace(None)
        self.permits = permits
        self._credentials = credentials
        self.router = router
        self.client = client
        self.settings = settings or MirrorSettings()
        self.penalties = Penalties()
        self.traces = Traces()
        self.recent = RecentProviders()
        self.sizes = Sizes()
        self.held_bodies = HeldBodies()
        self.suspects = Suspects()
        self.lookups = LookupLimit()
        self._counters: dict[str, tuple[Counter, Counter]] = {}
        self._metrics = metrics
        self._disk = trio.CapacityLimiter(2)  # a disk may hang
        self.on_resolved: Callable[[float], None] = metrics.resolve_duration.labels("libp2p").observe

    def may_ask(self, provider: Provider) -> bool:
        """Whether the policy permits the provider and no penalty bars it."""
        return self.permits(provider) and not self.penalties.bars(provider)

    def on_mismatch(self, provider: Provider, digest: Digest) -> None:
        """Count and penalize a peer whose bytes did not have the requested digest."""
        self._metrics.verification_failures.inc()
        self.penalties.lied(provider)
        log.warning("peer sent wrong bytes", peer=provider.peer_id, registry=provider.registry[0], digest=digest)

    def mismatched(self, digest: Digest, senders: Sequence[Provider]) -> None:
        """Blame ``senders``, which sent one body one after the other, because it does not have its digest."""
        if len(senders) == 1:
            self.on_mismatch(senders[0], digest)
            return
        self._metrics.verification_failures.inc()
        self.suspects.add(digest, senders)
        log.warning("peers together sent wrong bytes", digest=digest, registries=[each.registry[0] for each in senders])

    def verified(self, digest: Digest, senders: Sequence[Provider]) -> None:
        """Clear ``senders``, whose bytes are right; the other suspects of the digest are asked last for a while."""
        for provider in self.suspects.settle(digest).difference(senders):
            self.penalties.slow(provider)

    def _counted(self, request: ContentRequest) -> tuple[Counter, Counter]:
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
            async with self.fetch(request, method, trace) as fetch:
                with self.lookups.one(trace.client, request):
                    answer = await fetch.first(range_header)
                async with Transfer(self, fetch, request, answer, trace) as transfer:
                    yield transfer

    @asynccontextmanager
    async def part(
        self, request: ContentRequest, range_header: str, trace: Trace, expected: Head | None = None
    ) -> AsyncIterator[Transfer]:
        """Find one range of a blob, as :meth:`open` does. The answer of a peer that sends the whole blob is dropped.

        ``expected``: the required head, because other parts of the same content have been sent already.
        """
        async with self.fetch(request, "GET", trace) as fetch:
            answer = await fetch.first(range_header, expected)
            while not answer.head.partial:  # a server may ignore Range (RFC 9110, 14.2)
                if isinstance(answer.body, PeerResponse):
                    answer.body.discard()
                answer = await fetch.first(range_header, expected)
            async with Transfer(self, fetch, request, answer, trace) as transfer:
                yield transfer

    @contextmanager
    def counted(self, request: ContentRequest) -> Iterator[None]:
        """Count the request that the context answers as a hit, or as a miss if the context ends with an unknown."""
        try:
            yield
        except (ManifestUnknown, BlobUnknown):
            self.missed(request)
            raise
        self.served(request)

    def _shared(self, request: ContentRequest, range_header: str | None, trace: Trace) -> Transfer | None:
        """Return a transfer that shares the held body of another client, if there is one."""
        holding = self.held_bodies.get(request.reference.digest)
        if holding is None or request.kind is not Kind.BLOB or range_header is not None:
            return None
        return Transfer(self, None, request, holding, trace)

    def begin(self, request: ContentRequest, method: str, trace_headers: TraceHeaders = (), client: str = "") -> Trace:
        """Begin the trace of a request; it is the context in which to look the content up.

        ``client``: the address of the client, "" for a client on this machine.
        """
        trace = self.traces.begin(request.reference, request.key, request.kind.value, method, trace_headers)
        trace.client = client
        return trace

    async def at_once(self, request: ContentRequest, range_header: str | None, trace: Trace) -> Transfer | None:
        """Return the transfer of a blob from a recent provider of it, asked over an idle connection.

        The caller enters the transfer. The result is None if there is no such provider, or if it does not give an
        acceptable answer within the hedge interval. Then :meth:`open` asks it again, and others.
        """
        if self.client.encrypts:
            return None  # the short cut gains nothing, because encrypted bytes can't be spliced
        if (shared := self._shared(request, range_header, trace)) is not None:
            return shared
        suspects = self.suspects.of(request.reference.digest)
        for provider in self.recent.get(request.key):
            fit = self.may_ask(provider) and not self.penalties.is_slow(provider) and provider not in suspects
            if fit and self.client.has_idle(provider.registry):
                with trio.move_on_after(self.settings.hedge):
                    return await self._ask_at_once(provider, request, range_header, trace)
                break
        return None

    async def _ask_at_once(
        self, provider: Provider, request: ContentRequest, wanted: str | None, trace: Trace
    ) -> Transfer | None:
        target, headers = self.question(request, wanted, trace.trace_headers)
        asked = time.perf_counter()
        response = await self.client.request_at_once(provider.registry, "GET", target, headers)
        if response is None:
            return None
        times = asked, 0.0, time.perf_counter()
        try:
            head = judge(response, request, wanted)
            body: bytes | PeerResponse = response
            if self.is_small(head):
                body = await self.read(response, head, provider, "GET")
            elif request.kind is Kind.BLOB and self.sizes.disputes(head.digest, head.size):
                if not await self.can_hold(head):
                    raise PeerError("says another size than a manifest, and others have not been asked")
                head = replace(head, disputed=True)
        except (PeerError, RangeInvalid):
            response.discard()
            return None
        except BaseException:
            response.discard()
            raise
        return Transfer(self, None, request, Answer(provider, head, body, times), trace)

    @asynccontextmanager
    async def fetch(self, request: ContentRequest, method: str, trace: Trace) -> AsyncIterator[Fetch]:
        """Open a fetch of the content. An exception that is raised in the context leaves it unchanged."""
        # the exception goes around the nursery, because that would wrap it in a group, and callers match its type
        found: Exception | None = None
        fetch: Fetch | None = None
        try:
            async with trio.open_nursery() as nursery:
                fetch = Fetch(self, request, method, nursery, trace)
                try:
                    yield fetch
                except Exception as exc:
                    found = exc
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            # answers can arrive until the nursery has ended, so unused ones are discarded after it
            if fetch is not None:
                fetch.close()
        if found is not None:
            raise found

    def question(
        self, request: ContentRequest, range_header: str | None, trace_headers: TraceHeaders
    ) -> tuple[str, list[tuple[str, str]]]:
        """Return the target and the header fields of a request to a peer.

        The client's reference, range and trace headers are passed on, and no other part of its request.
        """
        reference = request.reference
        name = urllib.parse.quote(reference.digest or reference.tag or "", safe=":")
        namespace = urllib.parse.quote(reference.namespace, safe="")
        target = f"/v2/{reference.repository}/{request.kind.value}/{name}?ns={namespace}"
        headers = [(MIRRORED_HEADER.decode(), "true"), ("accept", "*/*")]
        if self._credentials is not None:
            headers.append(("authorization", self._credentials.own))
        if range_header is not None:
            headers.append(("range", range_header))
        headers += trace_headers
        return target, headers

    def is_small(self, head: Head) -> bool:
        """Whether the content is verified, and small enough to be read into memory before the first byte is sent."""
        return self.settings.verify and not head.partial and head.size <= SMALL

    async def read(self, response: PeerResponse, head: Head, provider: Provider, method: str) -> bytes:
        """Return a small body, complete and verified. Raises PeerError, also if the whole body takes too long."""
        if method == "GET" and head.size > MAX_MANIFEST_SIZE:
            raise PeerError(f"has a manifest of {head.size} bytes, more than {MAX_MANIFEST_SIZE}")
        body, patience = b"", self.client.limits.stall
        with trio.move_on_after(patience) as reading:
            async with aclosing(response.chunks()) as pieces:
                body = b"".join([piece async for piece in pieces])
        if reading.cancelled_caught:
            raise PeerError(f"did not send {head.size} bytes within {patience:g} s", hung=True)
        if method == "GET" and not head.digest.fits(body):
            self.on_mismatch(provider, head.digest)
            raise PeerError("sent bytes that do not have the digest")
        return body

    def holds(self, head: Head) -> bool:
        """Whether the content is held: spooled and verified before the first byte is sent."""
        small = head.size <= self.settings.verify_first
        return self.settings.verify and not head.partial and (small or head.disputed)

    async def can_hold(self, head: Head) -> bool:
        """Whether the content can be verified before it is sent, which is required if its size is disputed.

        Content larger than ``verify_first`` may take a quarter of the free spool space, so that peers that claim large
        sizes can't use up the space of others.
        """
        if not self.settings.verify or head.partial:
            return False
        if head.size <= self.settings.verify_first:
            return True
        with trio.move_on_after(_DISK):
            spare = await in_thread(self.room.spare, self._disk)
            return head.size <= spare // 4
        return False

    def held(self, result: str) -> None:
        """Count the result of holding a body; see the metric."""
        self._metrics.verify_first.labels(result).inc()

    def missed(self, request: ContentRequest) -> None:
        """Count a miss: no peer had the content. :meth:`open` calls this itself."""
        self._counted(request)[1].inc()

    def served(self, request: ContentRequest) -> None:
        """Count a hit: a transfer has ended well. :meth:`open` calls this itself."""
        self._counted(request)[0].inc()
        self._metrics.mirror_last_success.set_to_current_time()

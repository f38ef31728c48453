# Bytes from a neighbour.
#
# A transfer lives in one nursery: the lookup that yields providers, the questions to them, and the body that
# the client reads.  The first good head wins; when its peer dies half-way, the race goes on for the rest of
# the bytes where they stopped.  A manifest or a small blob is read and checked before the race is over; how a larger
# one is verified, transfer.py knows.
#
# Before all that comes a short cut: a peer that had the blob a moment ago is asked over a connection that is there.
# If it answers soon, there is no race to be run, and its nursery is only opened if the peer dies half-way.

"""The mirror: content that this node does not have, streamed from peers that do."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace

import structlog
import trio

from spegel_consul.disk.threads import in_thread
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.http.peer_client import PeerClient, PeerError, PeerResponse
from spegel_consul.metrics.counter import Count
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
"""Bytes up to which a blob is read into memory and verified at once: that takes less than to start a thread for it."""

VERIFY_FIRST = 32 << 20
"""Bytes up to which a blob is held until it is verified, unless the settings say otherwise."""

_MOST_LABELS = 100
_DISK = 0.5  # seconds in which a disk should tell how much room it has


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """``resolve_timeout``: seconds to wait for a provider while none is being asked; ``attempts``: how many
    providers are asked before giving up; ``hedge``: seconds after which another one is asked as well;
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
        self._counters: dict[str, tuple[Count, Count]] = {}
        self._metrics = metrics
        self._disk = trio.CapacityLimiter(2)  # a disk may hang
        self.on_resolved: Callable[[float], None] = metrics.resolve_duration.labels("libp2p").observe

    def may_ask(self, provider: Provider) -> bool:
        """Whether it is one of those that may be asked, and has not misbehaved lately."""
        return self.permits(provider) and not self.penalties.bars(provider)

    def on_mismatch(self, provider: Provider, digest: Digest) -> None:
        """A peer's bytes did not have the digest that was asked for."""
        self._metrics.verification_failures.inc()
        self.penalties.lied(provider)
        log.warning("peer sent wrong bytes", peer=provider.peer_id, registry=provider.registry[0], digest=digest)

    def mismatched(self, digest: Digest, senders: Sequence[Provider]) -> None:
        """The bytes that ``senders`` sent of one body, one after the other, do not have its digest."""
        if len(senders) == 1:
            self.on_mismatch(senders[0], digest)
            return
        self._metrics.verification_failures.inc()
        self.suspects.add(digest, senders)
        log.warning("peers together sent wrong bytes", digest=digest, registries=[each.registry[0] for each in senders])

    def verified(self, digest: Digest, senders: Sequence[Provider]) -> None:
        """The bytes of ``senders`` are right; who was suspected with them is asked after others for a while."""
        for provider in self.suspects.settle(digest, senders):
            self.penalties.slow(provider)

    def _counted(self, request: ContentRequest) -> tuple[Count, Count]:
        """Hits and misses of the request's registry; clients choose its name, so there is an end to them."""
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

        Raises ManifestUnknown or BlobUnknown when no peer has it within the deadlines or the client of ``trace`` has
        too many lookups in flight, RangeInvalid when
        the range lies outside of it; whatever is raised in the context comes out as it is.
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
        """Find one range of a blob, as :meth:`open` does; a peer that sends all of it is left for another one.

        ``expected``: what the answer has to say, because other parts of the same content have been sent already. Then
        the client's limit of lookups was asked before.
        """
        async with self.fetch(request, "GET", trace) as fetch:
            with self.lookups.one(trace.client if expected is None else "", request):
                answer = await fetch.first(range_header, expected)
                while not answer.head.partial:  # a server may ignore Range (RFC 9110, 14.2)
                    if isinstance(answer.body, PeerResponse):
                        answer.body.discard()
                    answer = await fetch.first(range_header, expected)
            async with Transfer(self, fetch, request, answer, trace) as transfer:
                yield transfer

    @contextmanager
    def counted(self, request: ContentRequest) -> Iterator[None]:
        """The context of one request's answer, which is a hit or a miss by how it ends."""
        try:
            yield
        except (ManifestUnknown, BlobUnknown):
            self.missed(request)
            raise
        self.served(request)

    def _shared(self, request: ContentRequest, range_header: str | None, trace: Trace) -> Transfer | None:
        """The transfer of a body that another client waits for or is being sent, if it is held."""
        holding = self.held_bodies.get(request.reference.digest)
        if holding is None or request.kind is not Kind.BLOB or range_header is not None:
            return None
        return Transfer(self, None, request, holding, trace)

    def begin(self, request: ContentRequest, method: str, trace_headers: TraceHeaders = (), client: str = "") -> Trace:
        """A request that is to be looked up for the ``client`` at this address, "" for one on this machine; the
        context to do so in."""
        trace = self.traces.begin(request.reference, request.key, request.kind.value, method, trace_headers)
        trace.client = client
        return trace

    async def at_once(self, request: ContentRequest, range_header: str | None, trace: Trace) -> Transfer | None:
        """The blob from a peer that had it a moment ago, over a connection that is there; enter the transfer.

        None if there is no such peer, or it does not answer as it should within the hedge interval: then
        :meth:`open` asks it again, and others.
        """
        if self.client.encrypts:
            return None  # there is nothing to splice
        if (shared := self._shared(request, range_header, trace)) is not None:
            return shared
        suspects = self.suspects.of(request.reference.digest)
        for provider in self.recent.get(request.key):
            fit = self.may_ask(provider) and not self.penalties.is_slow(provider) and provider.registry not in suspects
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
        """A race for the content. Whatever is raised in the context comes out as it is."""
        # an exception passes through the nursery bare: it stands for the answer to the client, or for its departure
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
            # a question can be answered until the nursery has ended, however it ends
            if fetch is not None:
                fetch.close()
        if found is not None:
            raise found

    def question(
        self, request: ContentRequest, range_header: str | None, trace_headers: TraceHeaders
    ) -> tuple[str, list[tuple[str, str]]]:
        """The target and the header fields of a request to a peer.

        Nothing is the client's but what is asked for and what identifies the request.
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
        """Whether the content is verified, and so small that it is read whole before the client sees any of it."""
        return self.settings.verify and not head.partial and head.size <= SMALL

    async def read(self, response: PeerResponse, head: Head, provider: Provider, method: str) -> bytes:
        """A small body, whole and verified. Raises PeerError, also if it takes too long in all."""
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
        """Whether the content is held until it is verified."""
        small = head.size <= self.settings.verify_first
        return self.settings.verify and not head.partial and (small or head.disputed)

    async def can_hold(self, head: Head) -> bool:
        """Whether the content can be verified before it is sent, as what is disputed has to be.

        One that is larger than what is held anyway may take a quarter of the room that is left, so that no number of
        peers that claim large sizes takes away the room of others.
        """
        if not self.settings.verify or head.partial:
            return False
        if head.size <= self.settings.verify_first:
            return True
        with trio.move_on_after(_DISK):
            with suppress(RuntimeError):  # the limit of processes is reached
                spare = await in_thread(self.room.spare, self._disk)
                return head.size <= spare // 4
        return False

    async def is_to_be_held(self, head: Head) -> bool:
        """Whether the content is held: also if its digest is in doubt, within the same room as what is disputed."""
        return self.holds(head) or (bool(self.suspects.of(head.digest)) and await self.can_hold(head))

    def held(self, result: str) -> None:
        """What became of holding a body; see the metric."""
        self._metrics.verify_first.labels(result).inc()

    def missed(self, request: ContentRequest) -> None:
        """No peer had it; :meth:`open` says so itself."""
        self._counted(request)[1].inc()

    def served(self, request: ContentRequest) -> None:
        """A transfer has ended well; :meth:`open` says so itself."""
        self._counted(request)[0].inc()
        self._metrics.mirror_last_success.set_to_current_time()

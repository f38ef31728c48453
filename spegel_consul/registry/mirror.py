# Bytes from a neighbour.
#
# A transfer lives in one nursery: the lookup that yields providers, the questions to them, and the body that
# the client reads.  The first good head wins; when its peer dies half-way, the race goes on for the rest of
# the bytes where they stopped.  A manifest or a small blob is read and checked before the client sees any of it;
# of a larger one the last piece is held back until the digest of all pieces is right, and if it is not, the transfer is
# cut.  The runtime keeps the wrong beginning, fetches the rest from upstream and fails that pull, which no mirror can
# prevent; but the peer is known then and not asked again, so the next pull is right.
#
# Before all that comes a short cut: a peer that had the blob a moment ago is asked over a connection that is there.
# If it answers soon, there is no race to be run, and its nursery is only opened if the peer dies half-way.

"""The mirror: content that this node does not have, streamed from peers that do."""

from __future__ import annotations

import re
import time
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
import trio

from spegel_consul.metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown, DigestInvalid, ManifestUnknown, OCIError, RangeInvalid
from spegel_consul.oci.media import MAX_MANIFEST_SIZE, OCTET_STREAM
from spegel_consul.oci.path import ContentRequest, Kind
from spegel_consul.oci.ranges import parse_range
from spegel_consul.registry.credentials import Credentials
from spegel_consul.registry.peer import PeerClient, PeerError, PeerResponse
from spegel_consul.registry.penalties import Penalties
from spegel_consul.registry.plan import MIRRORED_HEADER, unknown
from spegel_consul.registry.policy import Permits, any_node
from spegel_consul.registry.race import Ask, Exhausted, Race, Wait
from spegel_consul.registry.recent import RecentProviders
from spegel_consul.registry.trace import CUT, Onward, Trace, Traces
from spegel_consul.ring import Provider, RingError, Router
from spegel_consul.server.relay import Relay, SourceFailed
from spegel_consul.server.sending import send_bytes, send_head

if TYPE_CHECKING:
    from hashlib import _Hash

log = structlog.get_logger(__name__)

SMALL = 256 << 10
"""Bytes up to which a blob is held until it is verified: hashing it takes less than to start a thread for it, and if
it is wrong another peer is asked."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})\Z", re.ASCII)
_MOST_LABELS = 100
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})\Z", re.ASCII)


class TransferCut(Exception):
    """The body can't be completed; the client's connection must be cut, for its head has been sent."""

    outcome = CUT


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """``resolve_timeout``: seconds to wait for a provider while none is being asked; ``attempts``: how many
    providers are asked before giving up; ``hedge``: seconds after which another one is asked as well;
    ``verify``: whether blobs are hashed while they pass (manifests always are)."""

    resolve_timeout: float = 0.2
    attempts: int = 3
    hedge: float = 0.1
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Head:
    """What a peer says of the content that it is about to send: ``[start, stop)`` of ``size`` bytes."""

    digest: Digest
    media_type: str
    start: int
    stop: int
    size: int
    partial: bool


class Transfer:
    """A head that was accepted, and the body behind it. ``chase`` finds another peer when this one fails."""

    def __init__(
        self, mirror: Mirror, chase: _Chase | None, request: ContentRequest, answer: _Answer, trace: Trace
    ) -> None:
        self._mirror = mirror
        self._trace = trace
        self._chase = chase
        self._request = request
        self._body = answer.body
        self._before: list[Provider] = []  # who sent the beginning of the body
        self.head = answer.head
        self.provider = answer.provider
        trace.asked, trace.connected, trace.first_byte = answer.times
        trace.peer = self.served_by
        if isinstance(answer.body, PeerResponse):
            trace.size = answer.head.stop - answer.head.start
        else:
            trace.size = trace.bytes = len(answer.body)

    @property
    def served_by(self) -> str:
        """``host:port`` of the registry that sends the bytes, or began to."""
        host, port = self.provider.registry
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def chunks(self, later: AsyncExitStack | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes of the body, verified. Raises TransferCut when they can't be completed or are wrong.

        A transfer that began without a race opens one in ``later`` if it needs it.
        """
        if isinstance(self._body, bytes):
            yield self._body
            return
        head = self.head
        hasher = self._hasher()
        reached = head.start
        held = b""
        body = self._body
        while True:
            try:
                async with aclosing(body.chunks()) as pieces:
                    async for piece in pieces:
                        if reached + len(piece) > head.stop:
                            raise PeerError("sent more bytes than it promised")
                        reached += len(piece)
                        self._trace.bytes = reached - head.start
                        if hasher is not None:
                            hasher.update(piece)
                        if held:
                            yield held
                        held = piece
                break
            except PeerError as exc:
                if reached == head.stop:
                    break
                body = await self._go_on(body, reached, exc, later)
        self._check(hasher)
        yield held

    async def relay(self, sink: trio.socket.SocketType, head: bytes) -> None:
        """Send ``head`` and the body on ``sink``, verified, without the bytes passing through this process if they can.

        Raises TransferCut, and OSError, trio.TooSlowError or trio.ClosedResourceError if the sink fails.
        """
        if isinstance(self._body, bytes):
            await send_bytes(sink, head + self._body)
            return
        hasher, relay = self._hasher(), None
        if not self._mirror.client.encrypts:
            self._trace.progress = relay = await Relay.start(sink, self.head.stop - self.head.start, hasher)
        async with AsyncExitStack() as later:
            if relay is not None:
                later.callback(relay.close)
                await send_head(sink, head)
                await self._splice(relay, self._body, hasher, later)
            else:
                await send_head(sink, head)
                async with aclosing(self.chunks(later)) as pieces:
                    async for piece in pieces:
                        await send_bytes(sink, piece)

    async def _splice(self, relay: Relay, body: PeerResponse, hasher: _Hash | None, later: AsyncExitStack) -> None:
        while True:
            try:
                await relay.put(body.buffered())
                await relay.pull(body.socket, self._mirror.client.limits.stall)
            except SourceFailed as exc:
                body = await self._go_on(body, self.head.stop - relay.left, exc, later)
            else:
                body.taken()
                break
        await relay.hashed()
        self._check(hasher)
        await relay.release()

    def _hasher(self) -> _Hash | None:
        """What verifies the body; a part of the content can't be verified."""
        whole = self.head.start == 0 and self.head.stop == self.head.size
        return self.head.digest.hasher() if whole and self._mirror.settings.verify else None

    async def _go_on(
        self, body: PeerResponse, reached: int, why: PeerError | SourceFailed, later: AsyncExitStack | None
    ) -> PeerResponse:
        """Another peer's answer for the bytes from ``reached`` on. Raises TransferCut."""
        mirror, head = self._mirror, self.head
        log.info("peer failed in mid-body", digest=head.digest, at=reached, size=head.size, error=str(why))
        body.discard()
        mirror.penalties.failed(self.provider, hung=why.hung)
        mirror.recent.drop(head.digest, self.provider)
        if self._chase is None:
            assert later is not None
            self._chase = await later.enter_async_context(mirror.chase(self._request, "GET", self._trace))
            self._chase.exclude(self.provider)
        if reached > head.start:
            self._before.append(self.provider)
        self._body, self.provider = resumed = await self._chase.resume(head, reached)
        self._trace.resumed += 1
        self._trace.peer = self.served_by
        return resumed[0]

    def _check(self, hasher: _Hash | None) -> None:
        if hasher is not None and hasher.hexdigest() != self.head.digest.encoded:
            # whoever sent a part and failed is suspected first: to blame the last one would let a peer that sends
            # junk and leaves turn us against the honest ones
            for provider in self._before or [self.provider]:
                self._mirror.on_mismatch(provider, self.head.digest)
            raise TransferCut(f"the bytes from {self.provider.registry[0]} do not have digest {self.head.digest}")

    def close(self) -> None:
        """Give up what was not read."""
        if isinstance(self._body, PeerResponse):
            self._body.discard()


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
    ) -> None:
        self.permits = permits
        self._credentials = credentials
        self.router = router
        self.client = client
        self.settings = settings or MirrorSettings()
        self.penalties = Penalties()
        self.traces = Traces()
        self.recent = RecentProviders()
        self._labelled: set[str] = set()
        self._metrics = metrics
        self.on_resolved: Callable[[float], None] = metrics.resolve_duration.labels("libp2p").observe

    def may_ask(self, provider: Provider) -> bool:
        """Whether it is one of those that may be asked, and has not misbehaved lately."""
        return self.permits(provider) and not self.penalties.bars(provider)

    def on_mismatch(self, provider: Provider, digest: Digest) -> None:
        """A peer's bytes did not have the digest that was asked for."""
        self._metrics.verification_failures.inc()
        self.penalties.lied(provider)
        log.warning("peer sent wrong bytes", peer=provider.peer_id, registry=provider.registry[0], digest=digest)

    def _label(self, registry: str) -> str:
        """The registry's name as a label; clients choose it, so there is an end to them."""
        if len(self._labelled) < _MOST_LABELS:
            self._labelled.add(registry)
        return registry if registry in self._labelled else "other"

    @asynccontextmanager
    async def open(
        self, request: ContentRequest, method: str, range_header: str | None, trace: Trace
    ) -> AsyncIterator[Transfer]:
        """Find the content; the transfer can be read inside of the context.

        Raises ManifestUnknown or BlobUnknown when no peer has it within the deadlines, RangeInvalid when
        the range lies outside of it; whatever is raised in the context comes out as it is.
        """
        try:
            async with self.chase(request, method, trace) as chase:
                answer = await chase.first(range_header)
                transfer = Transfer(self, chase, request, answer, trace)
                try:
                    yield transfer
                finally:
                    transfer.close()
        except (ManifestUnknown, BlobUnknown):
            self._metrics.mirror_requests.labels(self._label(request.reference.registry), "miss").inc()
            raise
        self.served(request)

    def begin(self, request: ContentRequest, method: str, onward: Onward = ()) -> Trace:
        """A request that is to be looked up; the context to do so in."""
        return self.traces.begin(request.reference, request.key, request.kind.value, method, onward)

    async def at_once(self, request: ContentRequest, range_header: str | None, trace: Trace) -> Transfer | None:
        """The blob from a peer that had it a moment ago, over a connection that is there; close the transfer.

        None if there is no such peer, or it does not answer as it should within the hedge interval: then
        :meth:`open` asks it again, and others.
        """
        if self.client.encrypts:
            return None  # there is nothing to splice
        wanted = _forwardable(request, range_header)
        for provider in self.recent.get(request.key):
            if self.may_ask(provider) and self.client.has_idle(provider.registry):
                with trio.move_on_after(self.settings.hedge):
                    return await self._ask_at_once(provider, request, wanted, trace)
                break
        return None

    async def _ask_at_once(
        self, provider: Provider, request: ContentRequest, wanted: str | None, trace: Trace
    ) -> Transfer | None:
        target, headers = self.question(request, wanted, trace.onward)
        asked = time.perf_counter()
        response = await self.client.request_at_once(provider.registry, "GET", target, headers)
        if response is None:
            return None
        times = asked, 0.0, time.perf_counter()
        try:
            head = judge(response, request, wanted)
            body = await self.read(response, head, provider, "GET") if self.is_small(head) else response
        except (PeerError, RangeInvalid):
            response.discard()
            return None
        except BaseException:
            response.discard()
            raise
        return Transfer(self, None, request, _Answer(provider, head, body, times), trace)

    @asynccontextmanager
    async def chase(self, request: ContentRequest, method: str, trace: Trace) -> AsyncIterator[_Chase]:
        """A race for the content. Whatever is raised in the context comes out as it is."""
        # an exception passes through the nursery bare: it stands for the answer to the client, or for its departure
        found: Exception | None = None
        async with trio.open_nursery() as nursery:
            chase = _Chase(self, request, method, nursery, trace)
            try:
                yield chase
            except Exception as exc:
                found = exc
            finally:
                nursery.cancel_scope.cancel()
        chase.close()
        if found is not None:
            raise found

    def question(
        self, request: ContentRequest, range_header: str | None, onward: Onward
    ) -> tuple[str, list[tuple[str, str]]]:
        """The target and the header fields of a request to a peer.

        Nothing is the client's but what is asked for and what identifies the request.
        """
        reference = request.reference
        name = urllib.parse.quote(reference.digest or reference.tag or "", safe=":")
        namespace = urllib.parse.quote(reference.registry, safe="")
        target = f"/v2/{reference.repository}/{request.kind.value}/{name}?ns={namespace}"
        headers = [(MIRRORED_HEADER.decode(), "true"), ("accept", "*/*")]
        if self._credentials is not None:
            headers.append(("authorization", self._credentials.own))
        if range_header is not None:
            headers.append(("range", range_header))
        headers += onward
        return target, headers

    def is_small(self, head: Head) -> bool:
        """Whether the content is verified, and so small that it is read whole before the client sees any of it."""
        return self.settings.verify and not head.partial and head.size <= SMALL

    async def read(self, response: PeerResponse, head: Head, provider: Provider, method: str) -> bytes:
        """A small body, whole and verified. Raises PeerError."""
        if method == "GET" and head.size > MAX_MANIFEST_SIZE:
            raise PeerError(f"has a manifest of {head.size} bytes, more than {MAX_MANIFEST_SIZE}")
        async with aclosing(response.chunks()) as pieces:
            body = b"".join([piece async for piece in pieces])
        if method == "GET" and not head.digest.fits(body):
            self.on_mismatch(provider, head.digest)
            raise PeerError("sent bytes that do not have the digest")
        return body

    def served(self, request: ContentRequest) -> None:
        """A transfer has ended well; :meth:`open` says so itself."""
        self._metrics.mirror_requests.labels(self._label(request.reference.registry), "hit").inc()
        self._metrics.mirror_last_success.set_to_current_time()


class _Chase:
    """One request's race, across all of its resumptions."""

    def __init__(
        self,
        mirror: Mirror,
        request: ContentRequest,
        method: str,
        nursery: trio.Nursery,
        trace: Trace,
    ) -> None:
        self.mirror = mirror
        self._trace = trace
        self._request = request
        self._method = method
        self.nursery = nursery
        self._since = trio.current_time()
        settings = mirror.settings
        self._race = Race(
            self._since,
            resolve_timeout=settings.resolve_timeout,
            attempts=settings.attempts,
            hedge=settings.hedge,
        )
        self._wake = trio.Event()
        self._looking_up = False
        self._questions: list[trio.CancelScope] = []
        self._answers: list[_Answer] = []
        self._refused: RangeInvalid | None = None
        for provider in mirror.recent.get(request.key):
            self._found(provider)

    async def first(self, range_header: str | None) -> _Answer:
        return await self._run(_forwardable(self._request, range_header), None)

    async def resume(self, head: Head, reached: int) -> tuple[PeerResponse, Provider]:
        rest = replace(head, start=reached, partial=True)
        self._race.resumed(trio.current_time())
        try:
            answer = await self._run(f"bytes={reached}-{head.stop - 1}", rest)
        except OCIError as exc:
            raise TransferCut(f"at byte {reached} of {head.size}: {exc.message}") from None
        assert isinstance(answer.body, PeerResponse)
        log.info("transfer resumed", digest=head.digest, at=reached, registry=answer.provider.registry[0])
        return answer.body, answer.provider

    def exclude(self, provider: Provider) -> None:
        """Don't ask it: it has just failed."""
        self._race.exclude(provider)

    def close(self) -> None:
        """Give up the answers that nobody took."""
        for answer in self._answers:
            if isinstance(answer.body, PeerResponse):
                answer.body.discard()
        self._answers.clear()

    def _found(self, provider: Provider) -> None:
        if self.mirror.may_ask(provider):
            self._race.found(provider)
            self._wake.set()

    async def _look_up(self) -> None:
        key, first = self._request.key, True
        try:
            async with self.mirror.router.lookup(key, count=self.mirror.settings.attempts) as providers:
                async for provider in providers:
                    if first:
                        first = False
                        self._trace.looked_up = time.perf_counter()
                        self.mirror.on_resolved(trio.current_time() - self._since)
                    self.mirror.recent.add(key, provider)
                    self._found(provider)
        except RingError as exc:
            log.debug("lookup failed", key=key, error=str(exc))
        self._race.lookup_ended()
        self._wake.set()

    async def _run(self, range_header: str | None, expected: Head | None) -> _Answer:
        while True:
            if self._answers:
                answer = self._answers.pop(0)
                self._race.accepted(answer.provider)
                for question in self._questions:
                    question.cancel()
                self._questions.clear()
                self.close()
                return answer
            match self._race.next(trio.current_time()):
                case Ask(provider):
                    question = trio.CancelScope()
                    self._questions.append(question)
                    self.nursery.start_soon(self._ask, question, provider, range_header, expected)
                case Wait(until, starved):
                    if starved and not self._looking_up:
                        self._looking_up = True
                        self.nursery.start_soon(self._look_up)
                    self._wake = trio.Event()
                    with trio.CancelScope(deadline=until):
                        await self._wake.wait()
                case Exhausted(reason):
                    if self._refused is not None:
                        raise self._refused
                    raise unknown(self._request, f"{self._request.reference} is not mirrored: {reason}")

    async def _ask(
        self, question: trio.CancelScope, provider: Provider, range_header: str | None, expected: Head | None
    ) -> None:
        target, headers = self.mirror.question(self._request, range_header, self._trace.onward)
        with question:
            try:
                asked = time.perf_counter()
                response = await self.mirror.client.request(provider.registry, self._method, target, headers)
                times = asked, response.connected, time.perf_counter()
                try:
                    head = judge(response, self._request, range_header, expected)
                    body: bytes | PeerResponse = response
                    if self._method == "HEAD" or self._request.kind is Kind.MANIFEST or self.mirror.is_small(head):
                        body = await self.mirror.read(response, head, provider, self._method)
                except BaseException:
                    response.discard()
                    raise
                if question.cancel_called:
                    # another answer was taken a moment ago; this one may be for bytes that nobody waits for any more
                    response.discard()
                    return
            except PeerError as exc:
                log.debug("peer failed", key=self._request.key, registry=provider.registry[0], error=str(exc))
                self.mirror.penalties.failed(provider, hung=exc.hung)
                self.mirror.recent.drop(self._request.key, provider)
                self._race.failed(provider, trio.current_time())
            except RangeInvalid as exc:
                # one peer's word: it counts if nobody else has another one
                self._refused = exc
                self._race.failed(provider, trio.current_time())
            else:
                self._answers.append(_Answer(provider, head, body, times))
            self._wake.set()


@dataclass(frozen=True, slots=True)
class _Answer:
    provider: Provider
    head: Head
    body: bytes | PeerResponse
    times: tuple[float, float, float]
    """When it was asked, when a connection was made for it (or 0), and when its first byte came."""


def _forwardable(request: ContentRequest, range_header: str | None) -> str | None:
    """The client's Range header, unless it is to be ignored (RFC 9110, 14.2) or meant for a manifest."""
    if range_header is None or request.kind is Kind.MANIFEST:
        return None
    try:
        return range_header.strip() if parse_range(range_header, 1 << 62) else None
    except RangeInvalid:
        return range_header.strip()


def judge(
    response: PeerResponse, request: ContentRequest, range_header: str | None, expected: Head | None = None
) -> Head:
    """The head of an acceptable answer. Raises PeerError, or RangeInvalid when the peer says so.

    ``expected``: what the answer must say because other bytes of the same content have been sent already.
    """
    status = response.status
    content_range = response.header(b"content-range") or ""
    if status == 416 and range_header is not None and expected is None:
        unsatisfied = _UNSATISFIED.match(content_range)
        if unsatisfied is not None:
            raise RangeInvalid(int(unsatisfied[1]))
    if status != 200 and not (status == 206 and range_header is not None):
        raise PeerError(f"answered {status}")
    if response.header(b"transfer-encoding") is not None:
        raise PeerError("did not frame the content by its length")
    length = response.header(b"content-length") or ""
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise PeerError("did not say how long the content is")
    start, stop, size = 0, int(length), int(length)
    if status == 206:
        span = _CONTENT_RANGE.match(content_range)
        if span is None:
            raise PeerError(f"answered 206 with content-range {content_range[:60]!r}")
        start, stop, size = int(span[1]), int(span[2]) + 1, int(span[3])
        asked_for = parse_range(range_header, size)
        if stop - start != int(length) or asked_for is None or (start, stop) != (asked_for.start, asked_for.stop):
            raise PeerError(f"answered 206 with content-range {content_range[:60]!r} and length {length}")
    asked = request.reference.digest
    try:
        digest = Digest(response.header(b"docker-content-digest") or asked or "")
    except DigestInvalid:
        raise PeerError("did not say which digest the content has") from None
    if asked is not None and digest != asked:
        raise PeerError(f"answered with another digest, {digest}")
    media_type = response.header(b"content-type") or OCTET_STREAM
    head = Head(digest, media_type, start, stop, size, status == 206)
    if expected is not None and head != replace(expected, media_type=media_type):
        raise PeerError("answered with other bytes than those that are missing")
    return head

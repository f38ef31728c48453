# The race for one piece of content: the lookup and the questions are tasks, and race.py decides which is next.  It
# stays after it was won, for the peer that won may die half-way.

"""Finding peers that have the content, and asking them."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog
import trio

from spegel_consul.http.peer_client import PeerError, PeerResponse, Unreachable
from spegel_consul.oci.errors import OCIError, RangeInvalid
from spegel_consul.oci.path import ContentRequest, Kind, unknown
from spegel_consul.peers import Provider, RingError
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers
from spegel_consul.registry.mirror.providers.hedging import Ask, Exhausted, Race, Wait
from spegel_consul.registry.mirror.trace import CUT, Trace
from spegel_consul.registry.mirror.validate import Head, judge, type_of

log = structlog.get_logger(__name__)


class TransferCut(Exception):
    """The body can't be completed; the client's connection must be cut, for its head has been sent."""

    outcome = CUT


@dataclass(frozen=True, slots=True)
class Answer:
    """An accepted answer, and who gave it. ``body`` is whole and verified if it is bytes."""

    provider: Provider
    head: Head
    body: bytes | PeerResponse
    times: tuple[float, float, float]
    """When it was asked, when a connection was made for it (or 0), and when its first byte came."""


class Fetch:
    """One request's race, across all of its resumptions; its questions are tasks of ``nursery``."""

    def __init__(
        self,
        peers: MirrorPeers,
        request: ContentRequest,
        method: str,
        nursery: trio.Nursery,
        trace: Trace,
    ) -> None:
        self._peers = peers
        self._trace = trace
        self._request = request
        # a manifest's type is read from the manifest, and a runtime goes by the type that the answer to HEAD names
        self._method = "GET" if request.kind is Kind.MANIFEST else method
        self._nursery = nursery
        self._since = trio.current_time()
        settings = peers.settings
        self._race = Race(
            self._since,
            resolve_timeout=settings.resolve_timeout,
            attempts=settings.attempts,
            hedge=settings.hedge,
            is_slow=self._is_last,
        )
        self._wake = trio.Event()
        self._looking_up = False
        self._questions: list[trio.CancelScope] = []
        self._answers: list[Answer] = []
        self._refused: RangeInvalid | None = None
        self._known: dict[tuple[Provider, tuple[str, int] | None], Provider] = {}
        self._unreached: set[tuple[str, int]] = set()
        for provider in peers.recent.get(request.key):
            self._found(provider)

    async def first(self, range_header: str | None, expected: Head | None = None) -> Answer:
        """The first acceptable answer; called again, that of another peer. ``expected``: what it has to say.

        Raises the OCIError that says why there is none.
        """
        self._race.resumed(trio.current_time())
        return await self._run(range_header, expected)

    async def resume(self, head: Head, reached: int, *, picky: bool = False) -> tuple[PeerResponse, Provider]:
        """Another peer's answer with the bytes of ``head`` from ``reached`` on; ``picky``: of none that is slow.

        Raises TransferCut.
        """
        rest, wanted = head, None
        if reached or head.partial:
            rest, wanted = replace(head, start=reached, partial=True), f"bytes={reached}-{head.stop - 1}"
        self._race.resumed(trio.current_time(), picky=picky)
        try:
            answer = await self._run(wanted, rest)
        except OCIError as exc:
            raise TransferCut(f"at byte {reached} of {head.size}: {exc.message}") from None
        assert isinstance(answer.body, PeerResponse)
        log.info("transfer resumed", digest=head.digest, at=reached, registry=answer.provider.registry[0])
        return answer.body, answer.provider

    def exclude(self, provider: Provider) -> None:
        """Don't ask it: it has just failed."""
        self._race.exclude(provider)

    def again(self, provider: Provider) -> None:
        """It may be asked once more, after all others."""
        self._race.again(provider)

    def _is_last(self, provider: Provider) -> bool:
        """Whether others are to be asked before it."""
        suspects = self._peers.suspects.of(self._request.reference.digest)
        return provider.registry in suspects or self._peers.penalties.is_slow(provider)

    def close(self) -> None:
        """Give up the answers that nobody took."""
        for answer in self._answers:
            if isinstance(answer.body, PeerResponse):
                answer.body.discard()
        self._answers.clear()

    def _found(self, provider: Provider) -> None:
        self._known[provider, provider.secondary] = provider
        by_secondary = provider.by_secondary if not self._peers.penalties.misbehaved(provider) else None
        for each in filter(None, (provider, by_secondary)):
            if self._peers.may_ask(each) and each.registry not in self._unreached:
                self._race.found(each)
                self._wake.set()
                return

    def _not_reached(self, address: tuple[str, int]) -> None:
        """Other records of it may name another secondary address, of which one may be right."""
        self._unreached.add(address)
        for each in [each for each in self._known.values() if each.registry == address]:
            self._found(each)

    async def _look_up(self) -> None:
        key, first = self._request.key, True
        try:
            async with self._peers.router.lookup(key, count=self._peers.settings.attempts) as providers:
                async for provider in providers:
                    if first:
                        first = False
                        self._trace.looked_up = time.perf_counter()
                        self._peers.on_resolved(trio.current_time() - self._since)
                    self._peers.recent.add(key, provider)
                    self._found(provider)
        except RingError as exc:
            log.debug("lookup failed", key=key, error=str(exc))
        self._race.lookup_ended()
        self._wake.set()

    async def _run(self, range_header: str | None, expected: Head | None) -> Answer:
        settle_at = math.inf
        aside: set[Provider] = set()
        while True:
            if count := len(self._answers):
                answer = await self._pick(expected, last=trio.current_time() >= settle_at)
                if answer is not None:
                    return self._accept(answer)
                if len(self._answers) > count:
                    continue
                settle_at = min(settle_at, trio.current_time() + self._peers.settings.resolve_timeout)
                for each in self._answers:
                    if each.provider not in aside:  # the next one is asked in its stead
                        aside.add(each.provider)
                        self._race.failed(each.provider, trio.current_time())
            match self._race.next(trio.current_time()):
                case Ask(provider):
                    self._start(provider, range_header, expected)
                case Wait(until, starved):
                    if starved and not self._looking_up:
                        self._looking_up = True
                        self._nursery.start_soon(self._look_up)
                    self._wake = trio.Event()
                    with trio.CancelScope(deadline=min(until, settle_at)):
                        await self._wake.wait()
                case Exhausted() if self._answers:
                    settle_at = -math.inf
                case Exhausted(reason):
                    if self._refused is not None:
                        raise self._refused
                    raise unknown(self._request, f"{self._request.reference} is not mirrored: {reason}")

    async def _pick(self, expected: Head | None, *, last: bool) -> Answer | None:
        """The answer to be used, of those that are there; None while a better one may come, unless this is the ``last``
        moment.

        If manifests or peers disagree about the size, that of a peer is not believed, but no answer is refused for it.
        One that can be verified is held until it is, the smallest first, because a lie of that is found out soonest.
        Of others, such as the answer to HEAD, the one that manifests agree with is waited for.
        """
        first = self._answers[0]
        whole = next((each for each in self._answers if self._method == "GET" and isinstance(each.body, bytes)), None)
        if whole is not None or expected is not None or self._request.kind is Kind.MANIFEST:
            return whole or first
        digest, sizes = first.head.digest, self._peers.sizes
        if all(
            each.head.size == first.head.size and not sizes.disputes(digest, each.head.size) for each in self._answers
        ):
            return first
        index, best = min(enumerate(self._answers), key=lambda each: each[1].head.size)
        log.debug("size is disputed", digest=digest, size=best.head.size, by_manifest=sizes.get(digest))
        if self._method == "GET" and await self._peers.can_hold(best.head):
            self._answers[index] = held = replace(best, head=replace(best.head, disputed=True))
            return held
        agreed = next((each for each in self._answers if each.head.size == sizes.get(digest)), None)
        return agreed or (best if last else None)

    def _accept(self, answer: Answer) -> Answer:
        """``answer`` is used; what else was answered or asked is given up."""
        self._race.accepted(answer.provider)
        for question in self._questions:
            question.cancel()
        self._questions.clear()
        self._answers.remove(answer)
        self.close()
        return answer

    def _start(self, provider: Provider, range_header: str | None, expected: Head | None) -> None:
        question = trio.CancelScope()
        self._questions.append(question)
        self._nursery.start_soon(self._ask, question, provider, range_header, expected)

    def _turn(self, provider: Provider) -> Provider | None:
        """The provider at its other address, if that is asked now."""
        other = provider.by_secondary
        if other is None or other.registry in self._unreached or not self._peers.may_ask(other):
            return None
        if not self._race.by_secondary(provider, other):
            return None
        self._peers.recent.add(self._request.key, other)
        return other

    async def _ask(
        self, question: trio.CancelScope, provider: Provider, range_header: str | None, expected: Head | None
    ) -> None:
        target, headers = self._peers.question(self._request, range_header, self._trace.trace_headers)
        with question:
            try:
                asked = time.perf_counter()
                response = await self._peers.client.request(provider.registry, self._method, target, headers)
                times = asked, response.connected, time.perf_counter()
                try:
                    head = judge(response, self._request, range_header, expected)
                    body: bytes | PeerResponse = response
                    if self._request.kind is Kind.MANIFEST:
                        body = await self._peers.read(response, head, provider, "GET")
                        head = replace(head, media_type=type_of(body, head.media_type))
                        self._peers.sizes.learn(body)
                    elif self._method == "HEAD" or self._peers.is_small(head):
                        body = await self._peers.read(response, head, provider, self._method)
                except BaseException:
                    response.discard()
                    raise
                if question.cancel_called:
                    # another answer was taken a moment ago; this one may be for bytes that nobody waits for any more
                    response.discard()
                    return
            except PeerError as exc:
                log.debug("peer failed", key=self._request.key, registry=provider.registry[0], error=str(exc))
                reached = not isinstance(exc, Unreachable)
                self._peers.penalties.failed(provider, hung=exc.hung, broken=exc.broken, reached=reached)
                self._peers.recent.drop(self._request.key, provider)
                if not reached and not question.cancel_called and (other := self._turn(provider)) is not None:
                    self._start(other, range_header, expected)
                else:
                    self._race.failed(provider, trio.current_time())
                if not reached:
                    self._not_reached(provider.registry)
            except RangeInvalid as exc:
                # one peer's word: it counts if nobody else has another one
                self._refused = exc
                self._race.failed(provider, trio.current_time())
            else:
                self._answers.append(Answer(provider, head, body, times))
            self._wake.set()


@asynccontextmanager
async def race(peers: MirrorPeers, request: ContentRequest, method: str, trace: Trace) -> AsyncIterator[Fetch]:
    """A race for the content. Whatever is raised in the context comes out as it is."""
    # an exception passes through the nursery bare: it stands for the answer to the client, or for its departure
    found: Exception | None = None
    fetch: Fetch | None = None
    try:
        async with trio.open_nursery() as nursery:
            fetch = Fetch(peers, request, method, nursery, trace)
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

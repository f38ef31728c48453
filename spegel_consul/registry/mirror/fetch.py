"""The hedged race for one piece of content: find peers that have it, and ask them.

The lookup and the questions are tasks of one nursery. Each task reports events to the :class:`Race` of
:mod:`spegel_consul.registry.mirror.providers.hedging`, which decides the next question. While nothing but the lookup
can happen, the request's own task waits for it. A fetch outlives its first accepted answer, because that peer may fail
in mid-body, and then the race goes on for the rest of the bytes. If no
provider is left, or if other content of the group is coming that way already, a node that is still downloading the
content is asked (:mod:`spegel_consul.registry.mirror.questions.source_search`), and so it is before a provider of
another zone.

Providers of a tag may have different digests under it. So two are asked at once, and the race ends as soon as two name
the same digest, or no other provider is to be had, or the hedge interval has passed since the first answer. The
youngest tag is used (:mod:`spegel_consul.registry.mirror.tags.tag_ages`).

A new rule belongs here if it decides which of several answers is used. The order of questions belongs to hedging, and
the rules for one answer belong to :mod:`spegel_consul.registry.mirror.validate_head`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
import trio

from spegel_consul.http.peer_client import PeerResponse
from spegel_consul.http.registry_connection import Unreachable
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import OCIError, RangeInvalid
from spegel_consul.oci.path import ContentRequest, Kind, unknown
from spegel_consul.peers import PeerError, Provider
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers
from spegel_consul.registry.mirror.providers.hedging import BUSY_PATIENCE, PROMISED_PATIENCE, Ask, Exhausted, Race, Wait
from spegel_consul.registry.mirror.questions.late_nursery import LateNursery
from spegel_consul.registry.mirror.questions.peer_answer import Answer, Question
from spegel_consul.registry.mirror.questions.provider_search import ProviderSearch
from spegel_consul.registry.mirror.questions.source_search import SourceSearch
from spegel_consul.registry.mirror.tags.tag_ages import OwnTagIsNewer, agree, newest
from spegel_consul.registry.mirror.trace import CUT, Trace
from spegel_consul.registry.mirror.validate_head import Head, PeerBusy

log = structlog.get_logger(__name__)

_MOST_LOOKUPS = 3  # of one request whose providers are busy

_TAGS_ABREAST = 2


class TransferCut(Exception):
    """The body can't be completed. The client's connection must be cut, because the head has been sent."""

    outcome = CUT


class FollowEnded(TransferCut):
    """No source is left to follow, or this node is the claimer now. The runtime asks upstream for the missing bytes."""


class Fetch:
    """The race of one request, including all resumptions; its questions are tasks of ``nursery``."""

    def __init__(
        self, peers: MirrorPeers, request: ContentRequest, method: str, nursery: LateNursery, trace: Trace
    ) -> None:
        self._peers = peers
        self._trace = trace
        self._request = request
        self._question = Question(peers, request, method, trace)
        self._method = self._question.method
        # A node downloads and follows for its own runtime only. A client that does not fall back can't be what others
        # follow, because it downloads nothing from upstream that this node's store shows.
        own = method == "GET" and not trace.client and request.reference.digest is not None and request.falls_back
        follows = peers.follows if own else None
        self._sources = SourceSearch(peers, follows, request, self._question, trace) if follows is not None else None
        self._nursery = nursery
        self._is_tag = request.reference.digest is None
        self._agreed_on = peers.tag_ages.agreed_on(request.key) if self._is_tag else None
        settings = peers.settings
        self._race = Race(
            trio.current_time(),
            resolve_timeout=settings.resolve_timeout,
            attempts=settings.attempts,
            hedge=settings.hedge,
            abreast=_TAGS_ABREAST if self._is_tag and self._agreed_on is None else 1,
            is_slow=partial(_is_last, peers, request.reference.digest),
            is_far=peers.nearness.waits,
            rank=peers.nearness.rank,
            choose=lambda waiting: peers.loads.choose(waiting, trio.current_time()),
            busy_patience=BUSY_PATIENCE if request.falls_back else PROMISED_PATIENCE,
        )
        self._search = ProviderSearch(peers, request.key, trace, nursery, self._found, self._lookup_ended)
        self._wake = trio.Event()
        self._questions: list[trio.CancelScope] = []
        self._answers: list[Answer] = []
        self._refused: RangeInvalid | None = None
        self._known: dict[tuple[Provider, tuple[str, int] | None], Provider] = {}
        self._unreached: set[tuple[str, int]] = set()
        for provider in peers.recent.get(request.key):
            self._found(provider)

    async def first(
        self, range_header: str | None, expected: Head | None = None, *, source_first: bool = True
    ) -> Answer:
        """Return the first acceptable answer; another call returns that of another peer.

        ``expected``: the required head, if any; ``source_first``: whether a source may be asked before the providers.
        Raises the OCIError with the reason why there is no answer.
        """
        answer = await self._first(range_header, expected, source_first)
        await self._nursery.open()  # because the next answer may be wanted in an inner cancel scope
        return answer

    async def _first(self, range_header: str | None, expected: Head | None, source_first: bool) -> Answer:
        sources = self._sources
        if sources is not None and source_first and sources.goes_first:
            answer = await sources.answer(range_header, expected)
            if answer is not None:
                return answer
        self._race.resumed(trio.current_time())
        instead = sources if sources is not None and source_first and not sources.asked else None
        try:
            return await self._run(range_header, expected, instead)
        except RangeInvalid:
            raise
        except OCIError:
            answer = await sources.answer(range_header, expected) if sources is not None and not sources.asked else None
            if answer is None:
                raise
            return answer

    async def resume(self, head: Head, reached: int, *, skip_slow: bool = False) -> Answer:
        """Return another peer's answer with the bytes of ``head`` from ``reached`` on.

        ``skip_slow``: do not ask peers that are slow, and follow none. Raises TransferCut.
        """
        rest, wanted = head, None
        if reached or head.partial:
            rest, wanted = replace(head, start=reached, partial=True), f"bytes={reached}-{head.stop - 1}"
        sources = self._sources
        follows = sources is not None and sources.found
        if self._search.is_over:  # nodes may have completed the download since the lookup
            self._search.count = 0
            self._look_up_again(anew=True)
        self._race.resumed(trio.current_time(), skip_slow=skip_slow)
        try:
            answer = await self._run(wanted, rest, sources if not skip_slow else None)
        except OCIError as exc:
            found = await sources.answer(wanted, rest) if sources is not None and not skip_slow else None
            if found is None:
                cut = FollowEnded if follows else TransferCut
                raise cut(f"at byte {reached} of {head.size}: {exc.message}") from None
            answer = found
        assert isinstance(answer.body, PeerResponse)
        tell = log.debug if follows else log.info  # all layers leave a source together
        tell("transfer resumed", digest=head.digest, at=reached, registry=answer.provider.registry[0])
        return answer

    def exclude(self, provider: Provider) -> None:
        """Do not ask the provider, because it has just failed."""
        self._race.exclude(provider)

    def again(self, provider: Provider) -> None:
        """Allow one more question to the provider, after all others."""
        self._race.again(provider)

    def close(self) -> None:
        """Abandon the lookup, and discard the answers that are not used."""
        self._search.close()
        self._discard_answers()

    def _discard_answers(self) -> None:
        for answer in self._answers:
            answer.discard()
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

    def _look_up_again(self, *, anew: bool = False) -> None:
        """Let the race have another lookup as soon as it knows no provider to ask; ``anew`` is as for the race."""
        self._search.again()
        self._race.lookup_begun(anew=anew)

    def _lookup_ended(self) -> None:
        self._race.lookup_ended()
        self._wake.set()

    async def _run(self, range_header: str | None, expected: Head | None, instead: SourceSearch | None) -> Answer:
        """Return the first acceptable answer; ``instead``: whom to ask before the first provider of another zone."""
        settle_at = math.inf
        aside: set[Provider] = set()
        while True:
            if count := len(self._answers):
                answer = await self._choose(expected, last=trio.current_time() >= settle_at)
                if answer is not None:
                    return self._accept(answer)
                if len(self._answers) > count:
                    continue
                settings = self._peers.settings
                patience = settings.hedge if self._is_tag else settings.resolve_timeout
                settle_at = min(settle_at, trio.current_time() + patience)
                for each in self._answers:
                    if each.provider not in aside:  # another provider is asked, because this answer may not be used
                        aside.add(each.provider)
                        self._race.failed(each.provider, trio.current_time())
            match self._race.next(trio.current_time()):
                case Ask(provider):
                    if instead is not None and self._race.asks_one and self._peers.nearness.waits(provider):
                        # so that one node of a zone takes the content from another zone, and the others follow it
                        answer, instead = await instead.answer(range_header, expected), None
                        if answer is not None:
                            self._race.put_back(provider, trio.current_time())
                            return answer
                    await self._start(provider, range_header, expected)
                case Wait(starved=True) if self._answers and self._is_tag and not self._search.is_begun:
                    settle_at = -math.inf  # a lookup of this moment has named the providers
                case Wait(until, starved):
                    if starved and not self._search.is_begun:
                        if self._race.knows_nobody and not self._answers:
                            beside = partial(self._sources.claim, self._nursery) if self._sources is not None else None
                            await self._search.begin_alone(until, beside)
                        else:
                            await self._search.begin()
                        continue
                    self._wake = trio.Event()
                    alone = self._race.knows_nobody
                    with trio.CancelScope(deadline=min(until, settle_at)):
                        await self._wake.wait()
                    if alone and not self._race.knows_nobody:
                        await trio.lowlevel.checkpoint()  # an answer to the lookup names several, to choose from
                case Exhausted() if self._answers:
                    settle_at = -math.inf
                case Exhausted(reason):
                    if self._refused is not None:
                        raise self._refused
                    if self._question.refused_age:
                        self._peers.tag_answered("too_old")
                        reason = f"{reason} that --tag-max-age accepts"
                    raise unknown(self._request, f"{self._request.reference} is not mirrored: {reason}")

    async def _choose(self, expected: Head | None, *, last: bool) -> Answer | None:
        """Return the answer to use, or None while a better one may come. ``last``: nothing more is waited for.

        Raises OwnTagIsNewer.
        """
        if not self._is_tag:
            return await self._pick(expected, last=last)
        heads = [answer.head for answer in self._answers]
        agreed = agree(heads) or heads[0].digest == self._agreed_on
        if not agreed and not last:
            return None
        head = heads[best := newest(heads)]
        own_is_newer = self._peers.tag_ages.own_is_newer(self._request.reference, head)
        self._peers.tag_answered(
            "own" if own_is_newer else "agreed" if agreed else "only" if len(heads) == 1 else "newest"
        )
        if agree(heads):
            self._peers.tag_ages.agreed(self._request.key, head.digest)
        if own_is_newer:
            if not self._trace.client:
                self._peers.tag_ages.kept(self._request.reference)
            raise OwnTagIsNewer(f"this node has a newer digest of {self._request.reference}")
        return self._answers[best]

    async def _pick(self, expected: Head | None, *, last: bool) -> Answer | None:
        """Return the answer to use, or None while a better one may come. ``last``: nothing more is waited for.

        If manifests or peers disagree about the size of the content, the size is disputed, but no answer is refused
        because of that. The smallest answer is used if it can be held and verified before it is sent, because a wrong
        small body is detected soonest. For other answers, such as those to HEAD, wait for one whose size the manifests
        confirm.
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
        """Use ``answer``: cancel the open questions and discard the other answers."""
        self._race.accepted(answer.provider)
        for question in self._questions:
            question.cancel()
        self._questions.clear()
        self._answers.remove(answer)
        self._discard_answers()
        return answer

    async def _start(self, provider: Provider, range_header: str | None, expected: Head | None) -> None:
        question = trio.CancelScope()
        self._questions.append(question)
        self._peers.loads.asked(provider.registry, trio.current_time())
        (await self._nursery.open()).start_soon(self._ask, question, provider, range_header, expected)

    def _by_secondary(self, provider: Provider) -> Provider | None:
        """Return the provider at its secondary address if that is to be asked instead, else None."""
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
        with question:
            try:
                answer = await self._question.ask(provider, range_header, expected)
                if question.cancel_called:
                    # another answer has been accepted, so this one may be for a range that is no longer wanted
                    answer.discard()
                    return
            except PeerBusy as exc:
                if question.cancel_called:  # another answer has been accepted, and the race has the provider again
                    self._peers.refused(provider, exc)
                    return
                self._race.refused(provider, self._peers.refused(provider, exc), trio.current_time())
                if self._search.is_over and self._race.knows_nobody and self._search.count < _MOST_LOOKUPS:
                    self._look_up_again()  # a lookup names few of many providers, and others may have it since
            except PeerError as exc:
                log.debug("peer failed", key=self._request.key, registry=provider.registry[0], error=str(exc))
                reached = not isinstance(exc, Unreachable)
                self._peers.penalties.failed(provider, hung=exc.hung, broken=exc.broken, reached=reached)
                self._peers.recent.drop(self._request.key, provider)
                if not reached and not question.cancel_called and (other := self._by_secondary(provider)) is not None:
                    await self._start(other, range_header, expected)
                else:
                    self._race.failed(provider, trio.current_time())
                if not reached:
                    self._not_reached(provider.registry)
            except RangeInvalid as exc:
                # one peer's claim: the range is refused only if no other peer gives an answer
                self._refused = exc
                self._race.failed(provider, trio.current_time())
            else:
                self._answers.append(answer)
            self._wake.set()


def _is_last(peers: MirrorPeers, digest: Digest | None, provider: Provider) -> bool:
    """Whether the provider is asked for ``digest`` after all others. Not a method, because a race refers to it."""
    return provider.registry in peers.suspects.of(digest) or peers.penalties.is_slow(provider)


@asynccontextmanager
async def race(peers: MirrorPeers, request: ContentRequest, method: str, trace: Trace) -> AsyncIterator[Fetch]:
    """A race for the content. Whatever is raised in the context comes out as it is."""
    # an exception passes through the nursery bare: it stands for the answer to the client, or for its departure
    found: Exception | None = None
    fetch: Fetch | None = None
    try:
        async with LateNursery() as nursery:
            fetch = Fetch(peers, request, method, nursery, trace)
            try:
                yield fetch
            except Exception as exc:
                found = exc
    finally:
        # a question can be answered until the nursery has ended, however it ends
        if fetch is not None:
            fetch.close()
    if found is not None:
        raise found

"""The source of last resort: a node that is still downloading the content.

The verdict of the group's keeper says which node to follow. It is asked for beside the lookup, so that a miss takes no
longer than the slower of the two, and it is used only if no provider gives an answer. A node whose runtime downloads
nothing asks after the lookup, and not at all if the keeper has told the lookup that it knows no download. If this node
is following a source with other content of the group already, that source goes before the providers, because all
followers would ask the first complete nodes otherwise and share their links. A source has limits of its own, because it
can't be faster than its own source, and because its runtime may be at other content of the image first. It waits with
its answer while its runtime is at work, and sends interim answers meanwhile. A source without even those hangs.

A source that fails is reported, and the next verdict names another one, or makes this node the claimer. It gets no
penalty. A new rule about the questions to sources, or about their failures, belongs here; the rules about verdicts are
in :mod:`spegel_consul.registry.mirror.following.group_claim`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import structlog
import trio

from spegel_consul.http.registry_connection import Unreachable
from spegel_consul.oci.errors import RangeInvalid
from spegel_consul.oci.path import ContentRequest, Kind
from spegel_consul.peers import PeerError, host_port
from spegel_consul.registry.mirror.followers import WAIT
from spegel_consul.registry.mirror.following.follows import Follows
from spegel_consul.registry.mirror.following.group_claim import Follow
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers, WrongBytes
from spegel_consul.registry.mirror.questions.late_nursery import LateNursery
from spegel_consul.registry.mirror.questions.peer_answer import Answer, Question
from spegel_consul.registry.mirror.trace import Trace
from spegel_consul.registry.mirror.validate_head import Head
from spegel_consul.ring.dht.claim_reports import Why

log = structlog.get_logger(__name__)

FIRST_BYTE = WAIT + 2.0
"""Seconds in which a source must have begun; longer than it waits itself, so that its answer says why it has not."""

SILENT = 3.5
"""Seconds without an answer or an interim one after which a source hangs; it sends one a second while it waits."""

_LONG = 20.0  # seconds after which a refusal says that the source has not come to this content
_REFUSALS = 2  # after which a source is asked again, while it sends other content of the group
_AFTER_REFUSAL = 0.5  # seconds
_MOST_SOURCES = 4  # that one request follows before it goes upstream
_READY = 1.0  # seconds for which a verdict is kept for the end of the lookup


class SourceSearch:
    """Finds a node to follow for ``request``, which names a digest."""

    def __init__(
        self, peers: MirrorPeers, follows: Follows, request: ContentRequest, question: Question, trace: Trace
    ) -> None:
        self._peers = peers
        self._follows = follows
        self._request = request
        self._question = question
        self._trace = trace
        self._begun = self._put_off = False
        self._claimed: trio.Event | None = None
        self._upstream_until = -math.inf
        self.asked = False
        """Whether a source was looked for."""
        self.found = False
        """Whether a source has been followed."""

    @property
    def goes_first(self) -> bool:
        """Whether to look for a source before the providers, because this node follows one with this group already."""
        digest = self._request.reference.digest
        return not self.asked and digest is not None and self._follows.is_following(digest)

    async def claim(self, nursery: LateNursery) -> None:
        """Have a verdict ready when the lookup has found no provider, by a task if the claim can't be put off."""
        if self._begun:
            return
        self._begun = True
        self._put_off = self._follows.claims_late(self._request)
        if not self._put_off:
            self._claimed = trio.Event()
            (await nursery.open()).start_soon(self._claim, self._claimed)

    async def _claim(self, claimed: trio.Event) -> None:
        self._put_off = await self._follows.may_claim_late(self._request)
        if not self._put_off:
            await self._ask_keeper()
        claimed.set()

    async def _ask_keeper(self) -> None:
        group = await self._follows.begin(self._request)
        if group is None or await group.verdict() is None:
            self._upstream_until = trio.current_time() + _READY
        if group is not None:
            self._trace.claimed = time.perf_counter()

    async def answer(self, range_header: str | None, expected: Head | None) -> Answer | None:
        """Return the answer of the node that the keeper says to follow; None if this node is to go upstream.

        ``expected``: the required head, if any.
        """
        self.asked = True
        if self._claimed is not None and not self._claimed.is_set():  # waiting would cost a turn of the event loop
            await self._claimed.wait()
        if self._put_off:
            if self._follows.is_vacant(self._request):
                return None
            self._put_off = False
            await self._ask_keeper()
        deadline = trio.current_time() + FIRST_BYTE
        for _ in range(_MOST_SOURCES):
            if trio.current_time() < self._upstream_until:
                break
            group = await self._follows.begin(self._request)
            source = await group.verdict() if group is not None else None
            if group is None or source is None or trio.current_time() >= deadline:
                break
            if self._peers.followers.waits(source.peer_id, self._request.key):
                break  # it waits for this node with the same content, so each would wait for the other
            follow, answer = Follow(group.claim, source), None
            try:
                answer = await self._ask(follow, range_header, expected, deadline)
            finally:
                if answer is None:
                    follow.close()
            if answer is not None:
                if self._request.kind is Kind.BLOB:
                    group.followed(source)
                if isinstance(answer.body, bytes):
                    follow.close(len(answer.body))
                self.found = True
                self._trace.followed = host_port(*source.registry)
                return answer
            if not follow.over:
                break  # the source has other content of the group, but not this
        return None

    async def _ask(
        self, follow: Follow, range_header: str | None, expected: Head | None, deadline: float
    ) -> Answer | None:
        """Return the source's answer. Return None if it fails, which is reported, or if it is to be left."""
        source, began, refusals = follow.source, trio.current_time(), 0
        with trio.CancelScope() as asking:
            follow.on_leave(asking.cancel)
            while (left := deadline - trio.current_time()) > 0:
                try:
                    answer = await self._question.ask(source, range_header, expected, follow, left, SILENT)
                    return await self._disputed(answer) if expected is None else answer
                except RangeInvalid:
                    return None
                except PeerError as exc:
                    log.debug("source failed", key=self._request.key, registry=source.registry[0], error=str(exc))
                    now = trio.current_time()
                    if now >= deadline or now - began >= _LONG:  # this node's limit, for all sources together
                        return None
                    other = source.by_secondary if source is follow.source else None
                    if isinstance(exc, Unreachable) and other is not None and self._peers.may_ask(other):
                        source = other
                        continue
                    why = reason(exc)
                    if why is Why.CUT:  # without a byte of it: a body that is read is small
                        follow.lost(why, silent=True)
                        return None
                    if why is not Why.REFUSED or (self._request.kind is Kind.BLOB and not follow.has_siblings):
                        follow.lost(why)
                        return None
                    # the source is not lost for the group: it has not come to this content, and sends other content
                    refusals += 1
                    if self._request.kind is Kind.MANIFEST or refusals > _REFUSALS:
                        return None
                    await trio.sleep(_AFTER_REFUSAL)
        return None

    async def _disputed(self, answer: Answer) -> Answer:
        """Return ``answer``, to be held if a manifest names another size."""
        head = answer.head
        disputed = self._request.kind is Kind.BLOB and self._peers.sizes.disputes(head.digest, head.size)
        if isinstance(answer.body, bytes) or not disputed:
            return answer
        try:
            held = await self._peers.can_hold(head)
        except BaseException:
            answer.discard()
            raise
        return replace(answer, head=replace(head, disputed=True)) if held else answer


def reason(failure: PeerError) -> Why:
    """Return the reason of a source's failure, for the report to the keeper."""
    if isinstance(failure, WrongBytes):
        return Why.WRONG
    if isinstance(failure, Unreachable):
        return Why.UNREACHABLE
    return Why.CUT if failure.hung else Why.REFUSED

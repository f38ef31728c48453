"""Claims over the ring: reports go to the keeper of their group, and this node is a keeper for others.

The keeper is the living member of this program nearest to the group's key, or this node if it is nearer.  Members that
refuse the protocol are left out of the choice, so that all nodes agree.  A keeper that gave no valid answer in time is
left out for a while, and the second nearest is asked once.

A group has the key of its records, so its keeper is among the peers that a lookup of that key asks.  The keeper's
answer to the lookup says whether it keeps the group.  If it does not, a node without a download of its own needs no
verdict.

    claim() -> keeper -> its Pipeline -> the keeper's Service -> decide() -> Claims

A rule about the choice of a keeper, a time limit or a retry belongs here; the decision about a report belongs in
``dht/claims``, a limit on what one peer may send in ``protocol_server``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace

import structlog
import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.multiaddrs import Contact
from spegel_consul.peers import Provider, RingError, peer_id_from_text, peer_id_to_text
from spegel_consul.ring.dht.claim_messages import MAX_CLAIM_MESSAGE, WireVerdict, decode_verdict, encode_claim
from spegel_consul.ring.dht.claim_reports import MAX_BEHIND, ClaimReport, Report, Verdict, What
from spegel_consul.ring.dht.claims import LEASE, Claims
from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.dht.messages import WirePeer
from spegel_consul.ring.dht.protocol_ids import CLAIMS
from spegel_consul.ring.members.background import Background
from spegel_consul.ring.members.membership import Membership
from spegel_consul.ring.members.pipeline import Pipeline
from spegel_consul.ring.net.host import Host, ProtocolRefused

log = structlog.get_logger(__name__)

TIMEOUT = 2.0
"""Seconds within which a keeper must answer."""

SKIPPED_FOR = 10.0
"""Seconds for which a keeper that did not answer is not asked."""

REFUSED_FOR = 60.0
"""Seconds for which a member that refused the protocol is no keeper; it may be upgraded meanwhile."""

_NEAREST = 64  # members among which a keeper is looked for
_TOLD_FOR = 1.0  # seconds for which the keeper's word that it does not keep a group counts
_TOLD = 256
_PIPELINES = 1024
_GROUPS = 1024


def group_key(group: str) -> bytes:
    """The key of a group, which determines its keeper."""
    return _key_of_record(dht_key(group))


def _key_of_record(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def report_in_bytes(report: ClaimReport) -> Report:
    """``report`` with binary peer ids. Raises RingError if a text is not a peer id."""
    lost = peer_id_from_text(report.lost) if report.lost else b""
    behind = tuple(map(peer_id_from_text, report.behind[:MAX_BEHIND]))
    return Report(
        lost,
        report.why,
        report.serves,
        report.have,
        report.working,
        behind,
        near_only=report.near_only,
        left=report.left,
        declines=report.declines,
    )


class Claiming:
    """Sends the reports of this node and decides about those of others.

    ``provider`` makes a provider of usable addresses. ``predecessor`` is the object of the router that this one
    replaces; without one, ``chain`` is that of the groups (:data:`~spegel_consul.ring.dht.claim_forest.CHAIN`).
    """

    def __init__(
        self,
        host: Host,
        background: Background,
        membership: Membership,
        provider: Callable[[Contact], Provider],
        predecessor: Claiming | None,
        chain: int,
    ) -> None:
        self._host = host
        self._background = background
        self._membership = membership
        self._provider = provider
        self._position = position(host.id)
        self._claims: Claims = predecessor._claims if predecessor else Claims(chain)
        # by group, the source of the last verdict (this node for a claimer), and the moment
        self._held: BoundedDict[bytes, tuple[bytes, float]] = predecessor._held if predecessor else BoundedDict(_GROUPS)
        self._skipped: BoundedDict[bytes, float] = BoundedDict(_PIPELINES)
        self._pipelines: BoundedDict[bytes, Pipeline[WireVerdict]] = BoundedDict(_PIPELINES)
        self._told_vacant: BoundedDict[bytes, float] = BoundedDict(_TOLD)  # by group: when its keeper said so

    async def claim(self, group: str, report: ClaimReport) -> Verdict:
        """As :meth:`Router.claim`."""
        key, raw = group_key(group), report_in_bytes(report)
        if self._background.nursery is None:
            raise RingError("the ring is not running")
        held, at = self._held.get(key, (b"", -math.inf))
        if trio.current_time() - at < LEASE:
            raw = replace(raw, held=held)
        failed = 0
        while failed < 2:
            keeper = self._keeper(key)
            if keeper is None:
                await trio.lowlevel.checkpoint()
                return self._verdict(key, self.decide(self._host.id, key, raw))
            try:
                return self._verdict(key, await self._ask(keeper, key, raw))
            except ProtocolRefused:
                self._skipped[keeper] = trio.current_time() + REFUSED_FOR
            except (RingError, trio.TooSlowError) as exc:
                log.debug("ring_claim_failed", keeper=peer_id_to_text(keeper), error=repr(exc))
                self._skipped[keeper] = trio.current_time() + SKIPPED_FOR
                self._membership.doubt(keeper)
                failed += 1
        raise RingError("no keeper of the download answered")

    def next_asked(self, raw: bytes) -> bytes | None:
        """The peer to which a claim of the group would go of which the records have the key ``raw``.

        None if this node decides it, or makes no claims.
        """
        return self._keeper(_key_of_record(raw)) if self._pipelines else None

    def keeps_no(self, raw: bytes) -> bool:
        """Whether this node keeps nothing of the group of which the records have the key ``raw``."""
        return _key_of_record(raw) not in self._claims

    def told_vacant(self, raw: bytes) -> None:
        """The keeper has said that it keeps nothing of the group of which the records have the key ``raw``."""
        now = trio.current_time()
        self._told_vacant.drop_oldest(lambda at: now - at >= _TOLD_FOR)
        self._told_vacant[_key_of_record(raw)] = now

    def is_vacant(self, group: str) -> bool:
        """As :meth:`Router.is_vacant`."""
        key = group_key(group)
        if trio.current_time() - self._told_vacant.get(key, -math.inf) < _TOLD_FOR:
            return True
        return self._keeper(key) is None and key not in self._claims

    def decide(self, peer: bytes, group: bytes, report: Report) -> WireVerdict:
        """The verdict about a report of ``peer``, this node or another."""
        # here and not in the constructor, because a successor shares the claims, and may never take over
        self._claims.place_of = self._membership.place_of
        decision = self._claims.report(group, peer, report, trio.current_time())
        sources = tuple(filter(None, map(self._wire, decision.sources)))
        if decision.what is What.FOLLOW and not sources:
            return WireVerdict(group, What.ALONE, again=decision.again)
        return WireVerdict(group, decision.what, sources, decision.again, decision.slow_upstream)

    def _keeper(self, key: bytes) -> bytes | None:
        """The member that keeps the group; None if it is this node."""
        now = trio.current_time()
        target = int.from_bytes(key, "big")
        table = self._membership.table
        for peer in table.closest(target, _NEAREST):
            member = table.get(peer)
            if member is None or member.ours is False or self._skipped.get(peer, -math.inf) > now:
                continue
            return peer if member.position ^ target < self._position ^ target else None
        return None

    async def _ask(self, keeper: bytes, key: bytes, report: Report) -> WireVerdict:
        pipeline = self._pipelines.get(keeper)
        if pipeline is None:
            for gone in [each for each in self._pipelines if self._membership.table.get(each) is None]:
                del self._pipelines[gone]
            pipeline = self._pipelines[keeper] = Pipeline(
                self._host,
                keeper,
                lambda: member.routers if (member := self._membership.table.get(keeper)) else (),
                CLAIMS,
                self._background.spawn,
                decode_verdict,
                MAX_CLAIM_MESSAGE,
            )
        with trio.fail_after(TIMEOUT):
            verdict = await pipeline.ask(encode_claim(key, report))
        if verdict.group != key:
            raise RingError("the keeper answered about another download")
        self._membership.heard(keeper)
        return verdict

    def _verdict(self, key: bytes, wire: WireVerdict) -> Verdict:
        """The verdict with the addresses that can be dialled from here. Raises RingError if it names none."""
        named = [self._membership.contact(peer) for peer in wire.sources if peer.id != self._host.id]
        usable = [each for each in named if each.registry or each.routers]
        if wire.what is What.FOLLOW and not usable:
            raise RingError("the sources of the verdict can't be dialled from here")
        held = usable[0].id if usable else self._host.id if wire.what is What.CLAIM else b""
        now = trio.current_time()
        self._held.drop_oldest(lambda verdict: now - verdict[1] >= LEASE)
        self._held[key] = (held, now)
        return Verdict(wire.what, tuple(map(self._provider, usable)), wire.again, wire.slow_upstream)

    def _wire(self, peer: bytes) -> WirePeer | None:
        if peer == self._host.id:
            return self._membership.me
        member = self._membership.table.get(peer)
        return member.wire if member is not None else None

"""Claims at the router's door: reports go to the keeper of their group, which may be this node.

A rule about the choice of a keeper, a time limit or a retry belongs here; the decision about a report belongs in
``dht/claims``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import trio

from spegel_consul.peers import Provider, RingError, peer_id_from_text
from spegel_consul.ring.dht.claims import ClaimReport, Claims, Report, Verdict, What


def group_key(group: str) -> bytes:
    """The key of a group, which determines its keeper."""
    return hashlib.sha256(b"download " + group.encode()).digest()


def report_in_bytes(report: ClaimReport) -> Report:
    """``report`` with binary peer ids. Raises RingError if a text is not a peer id."""
    lost = peer_id_from_text(report.lost) if report.lost else b""
    behind = tuple(map(peer_id_from_text, report.behind[:16]))
    return Report(lost, report.why, report.serves, report.have, report.working, behind)


class Claiming:
    """Sends the reports of this node; ``provider`` finds the registry of a peer."""

    def __init__(self, me: bytes, claims: Claims, provider: Callable[[bytes], Provider | None]) -> None:
        self._me = me
        self._claims = claims
        self._provider = provider

    async def claim(self, group: str, report: ClaimReport) -> Verdict:
        """As :meth:`Router.claim`."""
        raw = report_in_bytes(report)
        await trio.lowlevel.checkpoint()
        decision = self._claims.report(group_key(group), self._me, raw, trio.current_time())
        sources = tuple(found for found in map(self._provider, decision.sources) if found is not None)
        if decision.what is What.FOLLOW and not sources:
            raise RingError("the sources of the verdict are not known here")
        return Verdict(decision.what, sources, decision.again)

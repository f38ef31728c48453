"""``ClusterSurvey``: asks the other nodes for their summaries when somebody looks at the cluster.

A look must not cost the cluster much. Nobody is asked unless somebody looks; looks share one round of questions, and
its answers are reused for some seconds, longer in a larger cluster. So all who look at one node make it send at most
:data:`RATE` questions a second on average, and each of the others answers one question a round. At most
:data:`MOST_AT_ONCE` questions wait at the same time, each for a limited time and with a limited answer.

A node that fails costs its own row only. Nodes that failed in the round before are asked last, so that those that hang
do not use up the time of a round before the others are asked.

A rule about the questions belongs here; the facts that follow from the answers belong to ``cluster_facts``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import aclosing

import trio

from spegel_consul.http.peer_client import PeerClient, PeerLimits, PeerResponse
from spegel_consul.peers import PeerError, host_port
from spegel_consul.web import formatting
from spegel_consul.web.cluster import node_summary
from spegel_consul.web.cluster.cluster_facts import ClusterFacts, NodeRow
from spegel_consul.web.cluster.metrics_ports import Address, MetricsPorts, page_of
from spegel_consul.web.cluster.node_summary import BadSummary, NodeSummary
from spegel_consul.web.node_views import Document, Node

PATH = "/api/summary"
MOST_AT_ONCE = 16
MOST_NODES = 2000
RATE = 50
"""Questions a second on average, at most; a round of 1,000 nodes is reused for 20 s."""
LEAST_FRESH = 2.0
"""Seconds for which the answers of a small cluster are reused."""
ROUND = 8.0
"""Seconds of a whole round; a node that was not asked by then has a row that says so."""
LONGEST_ANSWER = 128 << 10
_LIMITS = PeerLimits(connect=1.0, first_byte=2.0, stall=1.0, idle_connections=0)
_ANSWER = 4.0  # seconds of one whole answer


class ClusterSurvey:
    """The overview of the cluster as ``node`` sees it."""

    def __init__(self, node: Node, ports: MetricsPorts) -> None:
        self._node = node
        self._ports = ports
        self._asking = trio.Lock()
        self._facts = ClusterFacts(())
        self._stale_at = -math.inf
        self._failed: set[str] = set()

    async def look(self) -> ClusterFacts:
        """The facts of the last round, or of a new one if they are too old."""
        async with self._asking:  # who looks meanwhile waits for these answers instead of asking again
            if trio.current_time() >= self._stale_at:
                self._facts = await self._round()
                self._stale_at = trio.current_time() + max(LEAST_FRESH, len(self._facts.rows) / RATE)
        return self._facts

    async def _round(self) -> ClusterFacts:
        addresses = await self._ports.find()
        peers = self._node.peers()
        rows: dict[int, NodeRow] = {}
        waiting: list[tuple[int, Document, Address]] = []
        for number, peer in enumerate(peers):
            address = addresses.get(str(peer["id"]))
            if peer["state"] == "self":
                own = NodeSummary.parse(node_summary.of(self._node))
                rows[number] = NodeRow(peer, page_of(self._node.metrics_address), own)
            elif (reason := _not_asked(peer, address, len(waiting))) is not None:
                rows[number] = NodeRow(peer, page_of(address) if address is not None else None, None, reason)
            else:
                assert address is not None
                waiting.append((number, peer, address))
        waiting.sort(key=lambda each: each[1]["id"] in self._failed)
        rows |= await self._ask_all(waiting)
        facts = ClusterFacts(rows.values())
        for row in facts.rows:
            if row.summary is not None and row.peer["node"] is None and row.summary.name:
                self._node.told_names[str(row.peer["id"])] = row.summary.name
        return facts

    async def _ask_all(self, waiting: Sequence[tuple[int, Document, Address]]) -> dict[int, NodeRow]:
        rows: dict[int, NodeRow] = {}
        turns = iter(waiting)

        async def ask_in_turn() -> None:
            for number, peer, address in turns:
                try:
                    rows[number] = NodeRow(peer, page_of(address), await _ask(client, peer, address))
                except (PeerError, BadSummary) as exc:
                    rows[number] = NodeRow(peer, page_of(address), None, str(exc)[:300])

        client = PeerClient(_LIMITS)
        try:
            with trio.move_on_after(ROUND):
                async with trio.open_nursery() as nursery:
                    for _ in range(min(MOST_AT_ONCE, len(waiting))):
                        nursery.start_soon(ask_in_turn)
        finally:
            client.close()
        failed = {str(row.peer["id"]) for row in rows.values() if row.summary is None}
        # of those that this round has not come to, what the last one knew
        self._failed = failed | self._failed & {str(peer["id"]) for number, peer, _ in waiting if number not in rows}
        late = f"did not answer within the {ROUND:g} s of this round"
        return {number: rows.get(number) or NodeRow(peer, page_of(at), None, late) for number, peer, at in waiting}


def _not_asked(peer: Document, address: Address | None, asked: int) -> str | None:
    """The reason why a node is not asked for its summary; None to ask it."""
    if peer["state"] == "missing":
        return "healthy in the catalog, and not in the ring"
    if peer["state"] == "dead":
        return f"does not answer the ring, last heard {formatting.seconds(peer['last_seen'])} ago"
    if address is None:
        return "the address of its metrics port is not known"
    if asked >= MOST_NODES:
        return f"not asked, because the overview asks {MOST_NODES} nodes"
    return None


async def _ask(client: PeerClient, peer: Document, address: Address) -> NodeSummary:
    """The summary of a peer. Raises PeerError and BadSummary, whose messages are one line for people."""
    where = host_port(*address)
    with trio.move_on_after(_ANSWER):
        response = await client.request(address, "GET", PATH, (("accept", "application/json"),))
        body = await _body(response, where)
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise BadSummary(f"the server at {where} is no spegel-consul") from None
        found = NodeSummary.parse(document)
        if found.id != peer["id"]:
            raise BadSummary(f"another node answers at {where}: its metrics port is another one")
        return found
    raise PeerError(f"{where} did not send its summary within {_ANSWER:g} s")


async def _body(response: PeerResponse, where: str) -> bytes:
    try:
        if response.status == 404:
            raise BadSummary("its sidecar is an older version, without a summary")
        if response.status != 200:
            raise BadSummary(f"{where} answered with status {response.status}")
        if int(response.header(b"content-length") or 0) > LONGEST_ANSWER:
            raise BadSummary(f"the summary of {where} is too long")
        body = bytearray()
        async with aclosing(response.chunks()) as chunks:
            async for chunk in chunks:
                body += chunk
        return bytes(body)
    finally:
        response.discard()

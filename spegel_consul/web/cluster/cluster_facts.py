"""The overview of a cluster, from the members that a node knows and the summaries that they gave: without I/O.

Each known node has a row. A node that gave no summary has a row as well, with the reason. The totals are those of the
nodes that answered, and say of how many. Images are counted by name: the number of nodes that have each, and how many
digests the name stands for, because a tag that moved has two for a while.

A new figure about the nodes together belongs here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.web.cluster.node_summary import NodeSummary
from spegel_consul.web.node_views import Document

MOST_NAMES = 5000
"""Image names that are counted in all; more of them, which a node can invent, are left out."""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """``peer``: the document of :meth:`Node.peers`. ``page``: the URL of its status page.

    ``summary`` is None for a node that gave none; then ``reason`` says why.
    """

    peer: Document
    page: str | None
    summary: NodeSummary | None
    reason: str = ""

    @property
    def name(self) -> str:
        return str(self.peer["node"] or (self.summary.name if self.summary else "") or f"…{str(self.peer['id'])[-8:]}")

    @property
    def alarms(self) -> list[str]:
        """The problems of the node, the worst first: why there is no summary, why it is not ready, its warnings."""
        if self.summary is None:
            return [self.reason]
        not_ready = [] if self.summary.ready else [f"not ready: {self.summary.reason or 'no reason given'}"]
        return [*not_ready, *self.summary.warnings]

    @property
    def rank(self) -> int:
        """0 for a node without an answer, 1 for one that is not ready, 2 with warnings, 3 for a sound one."""
        if self.summary is None:
            return 0
        return 1 if not self.summary.ready else 2 if self.summary.warnings else 3

    def to_json(self) -> Document:
        return {
            "node": self.name,
            "id": self.peer["id"],
            "state": self.peer["state"],
            "leader": self.peer["leader"],
            "page": self.page,
            "reason": self.reason or None,
            "alarms": self.alarms,
            "summary": asdict(self.summary) if self.summary is not None else None,
        }


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image and the nodes that have it, by their numbers in the order of the rows."""

    name: str
    digests: int
    nodes: Sequence[int]


class ClusterFacts:
    """The rows in the order of their names, and what they make together."""

    def __init__(self, rows: Iterable[NodeRow]) -> None:
        self.rows = sorted(rows, key=lambda row: (row.name, str(row.peer["id"])))
        self.summaries = [row.summary for row in self.rows if row.summary is not None]
        self.answered = len(self.summaries)

    @cached_property
    def by_trouble(self) -> list[NodeRow]:
        """The rows with the worst first, in the order of their names."""
        return sorted(self.rows, key=lambda row: row.rank)

    @cached_property
    def versions(self) -> list[tuple[str, int]]:
        """The versions and how many nodes run each, the most frequent first."""
        return Counter(each.version or "unknown" for each in self.summaries).most_common()

    @cached_property
    def zones(self) -> list[tuple[str, int]]:
        """The zones and how many nodes are in each; nodes without a zone are left out."""
        return Counter(each.zone for each in self.summaries if each.zone).most_common()

    @cached_property
    def encrypted(self) -> int:
        """The number of nodes that encrypt to other nodes that can."""
        return sum(bool(each.peer_tls) for each in self.summaries)

    @cached_property
    def leaders(self) -> list[tuple[str, int]]:
        """The names of those that nodes take for the leader, and how many do, the most frequent first."""
        names = {str(row.peer["id"]): row.name for row in self.rows}
        known = Counter(each.leader for each in self.summaries if each.leader)
        return [(names.get(peer_id) or f"…{peer_id[-8:]}", count) for peer_id, count in known.most_common()]

    @cached_property
    def alarmed(self) -> int:
        """The number of rows with an alarm."""
        return sum(row.rank < 3 for row in self.rows)

    @cached_property
    def followers(self) -> int:
        """The number of downloads that read from a node that is still downloading."""
        return sum(follow.role == "follower" for each in self.summaries for follow in each.follows)

    @property
    def hits(self) -> int:
        return sum(each.day_hits for each in self.summaries)

    @property
    def requests(self) -> int:
        return sum(each.day_hits + each.day_misses for each in self.summaries)

    @property
    def saved(self) -> int:
        """Bytes that came from peers in the last 24 hours."""
        return sum(each.day_bytes for each in self.summaries)

    @cached_property
    def images(self) -> list[ImageRow]:
        """All images that the summaries name, those of the most nodes first."""
        nodes: defaultdict[str, list[int]] = defaultdict(list)
        digests: defaultdict[str, set[str]] = defaultdict(set)
        for number, row in enumerate(self.rows):
            for name, digest in dict(row.summary.images).items() if row.summary is not None else ():
                if name in nodes or len(nodes) < MOST_NAMES:
                    nodes[name].append(number)
                    digests[name].add(digest)
        found = [ImageRow(name, len(digests[name]), having) for name, having in nodes.items()]
        return sorted(found, key=lambda image: (-len(image.nodes), image.name))

    @cached_property
    def unlisted(self) -> int:
        """Copies of images that nodes have and did not name, because a summary names a limited number."""
        return sum(max(0, each.image_count - len(each.images)) for each in self.summaries)

    def to_json(self) -> Document:
        return {
            "nodes": [row.to_json() for row in self.rows],
            "answered": self.answered,
            "alarmed": self.alarmed,
            "versions": dict(self.versions),
            "leaders": dict(self.leaders),
            "encrypted": self.encrypted,
            "day": {"hits": self.hits, "requests": self.requests, "bytes_from_peers": self.saved},
        }

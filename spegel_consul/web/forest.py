"""The forest of nodes that follow each other, as far as one node sees it: its own sources and its own followers.

The documents of ``/api/status`` have a list of groups and a list of bodies. People want one tree for each image: the
source above this node, and the followers below it, each with all of its bodies. The status page and the command line
show the same trees. A new fact about them belongs to :mod:`spegel_consul.web.node_views`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spegel_consul.web import formatting

Document = Mapping[str, Any]

_DOING = {
    "": "sending the rest",
    "asking": "asking the keeper",
    "claimer": "downloading from upstream",
    "alone": "downloading alone",
}


@dataclass(slots=True)
class Follower:
    """A node that follows this one: the sums of its bodies. ``total`` is 0 while it waits for its first byte."""

    name: str
    bodies: int = 0
    sent: int = 0
    total: int = 0
    lag: int = 0
    behind: bool = False

    @property
    def text(self) -> str:
        """``12 of 64 MiB``, and how far it is behind if it does not keep up."""
        if not self.total:
            return "waits for the first byte"
        behind = f", {formatting.size(self.lag)} behind" if self.behind else ""
        return f"{formatting.part(self.sent, self.total)}{behind}"


@dataclass(slots=True)
class Tree:
    """One group. ``role`` is "" if this node has all of it, and only its followers are at work.

    ``working``: whether this node's runtime is downloading. A claimer stays one for some seconds after that, and one
    that finds the content at a neighbour meanwhile never begins.
    """

    group: str
    image: str
    role: str = ""
    working: bool = True
    source: str = ""
    have: int = 0
    size: int | None = None
    since: float | None = None
    left: str = ""
    followers: list[Follower] = field(default_factory=list)

    @property
    def doing(self) -> str:
        """The work of this node: ``following n3``."""
        if self.role == "follower":
            return f"following {formatting.elided(self.source, 40)}"
        if self.role in ("claimer", "alone") and not self.working:
            return "nothing is downloading"
        return _DOING.get(self.role, self.role)

    @property
    def text(self) -> str:
        """``following n3, 41 of 64 MiB``."""
        return f"{self.doing}, {formatting.part(self.have, self.size)}" if self.role else self.doing


def trees(following: Sequence[Document], followers: Sequence[Document]) -> list[Tree]:
    """The trees of the two lists of ``/api/status``, in their order; groups that only have followers come last."""
    found = {each["group"]: _tree(each) for each in following}
    nodes: dict[tuple[str, str], Follower] = {}
    for each in followers:
        group, name = each["group"], str(each["peer_node"] or f"…{each['peer'][-8:]}")
        if group not in found:
            found[group] = Tree(group, each["reference"].partition("@")[0])
        if (group, each["peer"]) not in nodes:
            nodes[group, each["peer"]] = Follower(name)
            found[group].followers.append(nodes[group, each["peer"]])
        node = nodes[group, each["peer"]]
        node.bodies += 1
        node.sent += each["sent"]
        node.total += each["total"] or 0
        node.lag += each["lag"]
        node.behind = node.behind or each["behind"]
    return list(found.values())


def _tree(each: Document) -> Tree:
    why = f"left {each['left_node'] or each['left']}: {each['left_why']}" if each["left"] else ""
    return Tree(
        each["group"],
        each["image"] or formatting.short(each["group"]),
        each["role"] or "asking",
        each.get("working", True),  # nodes of older versions do not say it
        each["source_node"] or each["source"] or "",
        each["have"],
        each["size"],
        each["since"],
        why,
    )

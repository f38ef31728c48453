"""The states of a preheat: of each runtime's pull, of each node, and of all nodes together.

A peer's states are read from its lines, and a peer may send anything: each field is checked, and texts are cut. A node
has the image if one of its runtimes has it and none failed; a runtime that can't be asked is left out, which is no
failure as long as another one of the node has the image.

A new field of the lines belongs here. Versions only add fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import field, replace
from enum import Enum
from typing import Any

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.observable import Observable
from spegel_consul.web.node_views import Document

MOST_RUNTIMES = 16
_LONGEST_TEXT = 500
_NODES_OF_A_LINE = 200


class BadLine(ValueError):
    """A line of a peer is no state of a preheat."""


class State(Enum):
    """The state of a node or of one runtime's pull."""

    WAITING = "waiting"
    PULLING = "pulling"
    DONE = "done"
    FAILED = "failed"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class RuntimePull:
    """The pull of one runtime. ``size``: bytes received, or of the whole image once it is there; None if unknown."""

    runtime: str
    state: State
    seconds: float = 0.0
    size: int | None = None
    reason: str | None = None
    missing: bool = False

    def to_json(self) -> Document:
        return {
            "runtime": self.runtime,
            "state": self.state.value,
            "seconds": round(self.seconds, 3),
            "bytes": self.size,
            "reason": self.reason,
            "missing": self.missing,
        }


@dataclass(frozen=True, slots=True)
class NodePreheat:
    """One node: ``pulls`` of its runtimes, and ``reason`` if it was refused or could not be asked."""

    pulls: tuple[RuntimePull, ...] = ()
    state: State = State.WAITING
    reason: str | None = None
    missing: bool = False

    @classmethod
    def failed(cls, reason: str, pulls: tuple[RuntimePull, ...] = ()) -> NodePreheat:
        """A node that failed for this reason, and with it the ones of its ``pulls`` that had not ended."""
        text, going_on = _text(reason), (State.WAITING, State.PULLING)
        ended = (replace(pull, state=State.FAILED, reason=text) if pull.state in going_on else pull for pull in pulls)
        return cls(tuple(ended), State.FAILED, text)

    @classmethod
    def ended(cls, pulls: tuple[RuntimePull, ...]) -> NodePreheat:
        """The verdict on a node whose runtimes have all ended."""
        failures = [pull for pull in pulls if pull.state is State.FAILED]
        if not failures and any(pull.state is State.DONE for pull in pulls):
            return cls(pulls, State.DONE)
        missing = bool(failures) and all(pull.missing for pull in failures)
        causes = failures or [pull for pull in pulls if pull.state is State.LEFT_OUT]
        return cls(pulls, State.FAILED, causes[0].reason if causes else "no runtime was asked", missing)

    def to_json(self) -> Document:
        return {
            "runtimes": [pull.to_json() for pull in self.pulls],
            "state": self.state.value,
            "reason": self.reason,
            "missing": self.missing,
        }

    @classmethod
    def parse(cls, document: Any) -> NodePreheat:
        """From a document of :meth:`to_json`. Raises BadLine."""
        try:
            runtimes = document["runtimes"]
            if not isinstance(runtimes, list) or len(runtimes) > MOST_RUNTIMES:
                raise BadLine("the line has no list of runtimes")
            pulls = tuple(map(_pull, runtimes))
            return cls(pulls, State(document["state"]), _optional(document["reason"]), document["missing"] is True)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BadLine("the line is no state of a preheat") from None


def _pull(document: Any) -> RuntimePull:
    seconds, size = float(document["seconds"]), document["bytes"]
    if not (math.isfinite(seconds) and seconds >= 0):
        raise BadLine("a time is no number of seconds")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 53):
        raise BadLine("a size is no number of bytes")
    reason, missing = _optional(document["reason"]), document["missing"] is True
    return RuntimePull(_text(document["runtime"]), State(document["state"]), seconds, size, reason, missing)


def _optional(found: Any) -> str | None:
    return None if found is None else _text(found)


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise BadLine("a text is no text")
    return " ".join(found.split())[:_LONGEST_TEXT]


@dataclass(slots=True)
class OwnReport:
    """The report of this node's own preheat."""

    now: NodePreheat = field(default_factory=NodePreheat)
    done: bool = False
    _revision: Observable[int] = field(default_factory=lambda: Observable(0))

    def set(self, now: NodePreheat, *, done: bool = False) -> None:
        self.now, self.done = now, self.done or done
        self._revision.set(self._revision.value + 1)

    def failed(self, reason: str) -> None:
        self.set(NodePreheat.failed(reason, self.now.pulls), done=True)

    def documents(self) -> list[Document]:
        return [{**self.now.to_json(), "done": self.done}]

    async def changed(self) -> None:
        await self._revision.changed(self._revision.value)


class ClusterReport:
    """The report of all nodes that are asked, by their peer ids. ``names``: their names for people."""

    def __init__(self, image: str, names: Iterable[tuple[str, str]]) -> None:
        self.image = image
        self._names = dict(names)
        self.nodes = {peer_id: NodePreheat() for peer_id in self._names}
        self.done = False
        self._problem: str | None = None
        self._changed = dict.fromkeys(self._names)
        self._revision = Observable(0)

    def set(self, peer_id: str, now: NodePreheat) -> None:
        if self.nodes[peer_id] != now:
            self.nodes[peer_id] = now
            self._changed[peer_id] = None
            self._touch()

    def end(self) -> None:
        """Nothing more happens; a node that has not ended is a failure."""
        for peer_id, found in self.nodes.items():
            if found.state not in (State.DONE, State.FAILED):
                self.set(peer_id, NodePreheat.failed("the preheat ended before", found.pulls))
        self.done = True
        self._touch()

    def failed(self, reason: str) -> None:
        self._problem = reason
        self.end()

    def documents(self) -> list[Document]:
        """The nodes that changed since the last call, 200 a line, because a reader takes lines up to a limit."""
        changed, self._changed = list(self._changed), {}
        starts = range(0, max(1, len(changed)), _NODES_OF_A_LINE)
        pieces = [changed[start : start + _NODES_OF_A_LINE] for start in starts]
        return [
            {
                "image": self.image,
                "asked": len(self.nodes),
                "nodes": [
                    {"node": self._names[peer_id], "id": peer_id, **self.nodes[peer_id].to_json()} for peer_id in piece
                ],
                "problem": self._problem,
                "done": self.done and piece is pieces[-1],
            }
            for piece in pieces
        ]

    async def changed(self) -> None:
        await self._revision.changed(self._revision.value)

    def _touch(self) -> None:
        self._revision.set(self._revision.value + 1)

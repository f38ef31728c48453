# Geometry of the two drawings of the status page: the ring, and what a request spent its time on.  Only numbers and
# texts come out; templates make SVG of them, and escape.

"""Where things are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spegel_consul.web.node import Document

RADIUS = 100.0
MOST_LABELS = 24
_LABEL_GAP = 17.0
_LABEL_AT = RADIUS + 26


@dataclass(frozen=True, slots=True)
class Dot:
    """A member on the circle, centre 0, radius 100. ``label`` is where its name stands, None without one.

    ``flow`` (0 to 1) is its share of the bytes that came from peers.
    """

    name: str
    state: str
    leader: bool
    x: float
    y: float
    title: str
    flow: float = 0.0
    label: tuple[float, float] | None = None
    anchor: str = "start"


def ring(peers: Sequence[Document], received: Mapping[str, int]) -> list[Dot]:
    """The dots of ``peers``; ``received`` are bytes by ``host:port`` of the registry that sent them."""
    all_bytes = sum(received.values())
    placed = [peer for peer in peers if peer["at"] is not None]
    # members that the catalog alone knows have no place that we know of: they wait above the circle's top
    unplaced = [peer for peer in peers if peer["at"] is None]
    dots = [_dot(peer, float(peer["at"]), RADIUS, received, all_bytes) for peer in placed]
    dots += [
        _dot(peer, (number - (len(unplaced) - 1) / 2) * 0.03, RADIUS + 14, received, all_bytes)
        for number, peer in enumerate(unplaced)
    ]
    return _labelled(dots) if len(dots) <= MOST_LABELS else dots


def _dot(peer: Document, at: float, radius: float, received: Mapping[str, int], all_bytes: int) -> Dot:
    name = peer["node"] or f"…{str(peer['id'])[-8:]}"
    angle = 2 * math.pi * at
    x, y = radius * math.sin(angle), -radius * math.cos(angle)
    state = str(peer["state"])
    title = f"{name}, {'this node' if state == 'self' else state}{', leader' if peer['leader'] else ''}"
    flow = received.get(str(peer["registry"]), 0) / all_bytes if all_bytes else 0.0
    return Dot(str(name), state, bool(peer["leader"]), round(x, 1), round(y, 1), title, round(flow, 3))


def _labelled(dots: Sequence[Dot]) -> list[Dot]:
    """Names beside the circle, on the side of their dots, none upon another."""
    found = []
    for side, anchor in ((1, "start"), (-1, "end")):
        here = sorted((dot for dot in dots if (dot.x >= 0) == (side == 1)), key=lambda dot: dot.y)
        heights = _spread([dot.y for dot in here], _LABEL_GAP)
        for dot, height in zip(here, heights, strict=True):
            found.append(replace(dot, label=(side * _LABEL_AT, round(height, 1)), anchor=anchor))
    return found


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Sorted heights, moved as little as is needed for ``gap`` between them, about where they were."""
    # groups of neighbours that touch are kept around the mean of what they wanted
    groups: list[tuple[list[float], float]] = []
    for height in wanted:
        members, centre = [height], height
        while groups and groups[-1][1] + len(groups[-1][0]) * gap / 2 > centre - len(members) * gap / 2:
            before, _ = groups.pop()
            members = before + members
            centre = sum(members) / len(members)
        groups.append((members, centre))
    return [
        centre + (number - (len(members) - 1) / 2) * gap for members, centre in groups for number in range(len(members))
    ]


PHASES = ("lookup", "connect", "wait", "stream")
"""What a mirrored request spends its time on: finding a peer, reaching it, waiting for its first byte, its bytes."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One phase: from ``x`` on, ``width`` wide, both in per cent of the widest row; ``ms`` is how long it was."""

    phase: str
    x: float
    width: float
    ms: float


def waterfall(request: Document, widest: float) -> list[Bar]:
    """The phases of one request of ``/api/requests``; ``widest`` is the time in ms that fills the row."""
    end = float(request["done_ms"] or request["elapsed_ms"])
    # what did not happen on the way (a peer that was known, a connection that stood) takes no time
    marks = [request["asked_ms"] or request["lookup_ms"], request["connect_ms"], request["first_byte_ms"]]
    if not any(marks):
        return _bars([("lookup", 0.0, end)], widest)
    steps, before = [], 0.0
    for phase, mark in zip(PHASES, [*marks, end], strict=True):
        if mark is not None and mark > before:
            steps.append((phase, before, float(mark)))
            before = float(mark)
    return _bars(steps, widest)


def pieces(measured: Document) -> list[list[Bar]]:
    """One row of phases for each piece of a measurement."""
    rows = measured["pieces"]
    widest = max((float(piece["done_ms"] or piece["first_byte_ms"]) for piece in rows), default=1.0)
    return [
        _bars(
            [
                ("wait", float(piece["started_ms"]), float(piece["first_byte_ms"])),
                ("stream", float(piece["first_byte_ms"]), float(piece["done_ms"] or piece["first_byte_ms"])),
            ],
            widest,
        )
        for piece in rows
    ]


def _bars(steps: Sequence[tuple[str, float, float]], widest: float) -> list[Bar]:
    scale = 100 / widest if widest > 0 else 0.0
    found = []
    for phase, start, stop in steps:
        x = min(99.4, start * scale)
        found.append(
            Bar(phase, round(x, 2), round(max(0.6, min(100 - x, (stop - start) * scale)), 2), round(stop - start, 2))
        )
    return found

"""A cold start for each setting of the mirror: the same nodes, a new image each time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.cluster import Node
from lab.cold_start import ColdStart, Outcome, can_follow
from lab.sidecar import Flag

from bench.proc import cpu_seconds

APART = 1.0
"""Seconds between the starts of two nodes."""

_LEAST_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. Rates in Mbit/s, ``slow_node`` is 0 if all nodes are alike; ``layers`` in bytes."""

    runtimes: Sequence[str]
    mirrors: Sequence[str]
    upstream: int
    link: int
    slow_node: int
    layers: Sequence[int]
    apart: bool


@dataclass(frozen=True, slots=True)
class Round:
    """One cold start. ``line`` is seconds for one copy through the upstream's line, ``cpu`` seconds of all sidecars."""

    mirror: str
    outcome: Outcome
    line: float
    cpu: float
    load: float

    def document(self) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "mirror": self.mirror,
            "image_bytes": outcome.image_bytes,
            "upstream_bytes": outcome.upstream_bytes,
            "copies": round(outcome.copies, 3),
            "line_seconds": round(self.line, 2),
            "sidecars_cpu_seconds": round(self.cpu, 2),
            "load_average": round(self.load, 1),
            "blob_requests": outcome.blobs,
            "manifest_requests": outcome.manifests,
            "head_requests": outcome.heads,
            "pulls": [asdict(pull) for pull in outcome.pulls],
        }


class NoFollow(Exception):
    """The product has no setting ``--follow``."""


def rounds(plan: Plan, say: Callable[[str], None]) -> Iterator[Round]:
    """One round for each of the plan's mirrors. Raises NoFollow before anything is started."""
    follow = can_follow()
    if "on" in plan.mirrors and not follow:
        raise NoFollow("this spegel-consul has no --follow (see spegel-consul registry --help): leave out --mirror on")
    say(f"starting {len(plan.runtimes)} nodes")
    with ColdStart(plan.runtimes, upstream_mbit=plan.upstream, link_mbit=plan.link) as cold:
        if plan.slow_node:
            cold.nodes[0].port.limit_incoming_rate(plan.slow_node)
        for mirror in plan.mirrors:
            say(f"mirror {mirror}: making and pushing an image")
            yield _round(cold, plan, mirror, follow, say)


def _round(cold: ColdStart, plan: Plan, mirror: str, follow: bool, say: Callable[[str], None]) -> Round:
    flags = _flags(mirror, follow)
    image = cold.image(plan.layers)
    line = cold.line_seconds(image)
    sidecars: list[Node] = []
    if flags is None:
        cold.without_mirror()
    else:
        cold.start_sidecars(log_level="info", **flags)
        sidecars = cold.nodes
    say(f"mirror {mirror}: pulling; one copy takes the line {line:.1f} s")
    slowest_line = min(plan.upstream / len(cold.nodes), plan.slow_node or plan.upstream)
    timeout = _LEAST_TIMEOUT + 2 * line * plan.upstream / slowest_line
    before = sum(_cpu(node) for node in sidecars)
    outcome = cold.pull(image, apart=APART if plan.apart else 0.0, timeout=timeout)
    cpu = sum(_cpu(node) for node in sidecars) - before
    load = os.getloadavg()[0]
    if sidecars:
        cold.stop_sidecars()
    cold.remove(image)
    return Round(mirror, outcome, line, cpu, load)


def _cpu(node: Node) -> float:
    return cpu_seconds(node.sidecar.process.pid)


def _flags(mirror: str, follow: bool) -> dict[str, Flag] | None:
    """Flags of the sidecars; None if there are none."""
    if mirror == "none":
        return None
    if mirror == "on":
        return {"follow": "on"}
    return {"follow": "off"} if follow else {}

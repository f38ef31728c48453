# Each figure has a goal, which is what a quiet machine shows, and a limit, which is what --check insists on; between
# the two lies the noise of machines that are shared.  Go's figures carry the comparison because Go is what the sidecar
# replaces; nginx is there to show how far Go itself is from the best.

"""What the sidecar is held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from bench.figures import Results, Spread
from bench.programs import GO, GO_SPEGEL, GO_VERIFYING, NGINX, SPEGEL, SPEGEL_UNVERIFIED
from bench.workload import MANIFESTS, MIRROR, MIRROR_TLS, OWN, OWN_TLS, RANGES, Plan, Workload

_STOP_MARGIN = 0.5


class Verdict(Enum):
    """How a figure stands to its floor."""

    GOAL = "goal"
    HELD = "ok"
    BROKEN = "BROKEN"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Floor:
    """A figure, its goal and its limit; ``at_most`` if less is better. ``found`` is None if it was not measured."""

    name: str
    found: Spread | None
    goal: float
    limit: float
    at_most: bool = False
    unit: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the median says."""
        if self.found is None:
            return Verdict.UNKNOWN
        if self._misses(self.found.median, self.limit):
            return Verdict.BROKEN
        return Verdict.HELD if self._misses(self.found.median, self.goal) else Verdict.GOAL

    def text(self) -> str:
        """The figure in one line, with its limit."""
        found = "-" if self.found is None else f"{self.found.median:.2f}"
        return f"{self.name} {found} {self.unit} (limit {self.limit:g})".replace("  ", " ")

    def _misses(self, value: float, bar: float) -> bool:
        return value > bar if self.at_most else value < bar


def floors(plan: Plan, results: Results) -> list[Floor]:
    """All floors of what ``plan`` measures."""
    return [
        *_own(plan, results),
        *_mirrored(plan, results),
        *_encrypted(plan, results),
        *_manifests(plan, results),
        *_cold(results),
        *_lifecycle(results),
        _errors(results),
    ]


def _ratio(
    results: Results, workload: Workload, goal: float, limit: float, *, ours: str = SPEGEL, base: str = GO
) -> Floor:
    found = results.ratio(workload.table, workload.label, ours, base)
    variant = ours.removeprefix(SPEGEL).strip(", ")
    name = f"{workload.table}: {workload.label}" + (f", {variant}" if variant else "")
    return Floor(name, found, goal, limit, unit=f"x {base}")


def _own(plan: Plan, results: Results) -> Iterator[Floor]:
    for workload in plan.of(OWN):
        if workload.of != "1 MiB":
            yield _ratio(results, workload, 1.0, 0.90)
            yield _ratio(results, workload, 0.75, 0.75, base=NGINX)
        elif workload.connections > 1:
            yield _ratio(results, workload, 1.0, 0.85)


def _mirrored(plan: Plan, results: Results) -> Iterator[Floor]:
    for workload in plan.of(MIRROR):
        if workload.of == "1 MiB":
            yield _ratio(results, workload, 2.0, 1.5, ours=SPEGEL_UNVERIFIED)
        else:
            yield _ratio(results, workload, 2.8, 2.0, ours=SPEGEL_UNVERIFIED)
            yield _ratio(results, workload, 1.5, 1.2, base=GO_VERIFYING)
    labels = {workload.label for workload in plan.of(MIRROR) if workload.of != "1 MiB"}
    samples = results.of(MIRROR, server=SPEGEL_UNVERIFIED)
    cost = Spread.of(sample.cost for sample in samples if sample.load in labels and sample.bytes)
    yield Floor(f"{MIRROR}: CPU, unverified", cost, 0.35, 0.35, at_most=True, unit="s/GiB")


def _encrypted(plan: Plan, results: Results) -> Iterator[Floor]:
    """CPU, because the rate over TLS is that of one core, which neighbours take. None for a run without TLS.

    None for small unverified blobs: a runtime that asks again at once for what was not verified makes the node suspect
    the peer and look for another one, so such a run measures lookups.
    """
    for table, ours, base in (
        (OWN_TLS, SPEGEL, GO),
        (MIRROR_TLS, SPEGEL_UNVERIFIED, GO),
        (MIRROR_TLS, SPEGEL, GO_VERIFYING),
    ):
        for workload in plan.of(table) if results.of(table) else ():
            if ours == SPEGEL_UNVERIFIED and workload.of == "1 MiB":
                continue
            found = results.cost_ratio(table, workload.label, ours, base)
            variant = ours.removeprefix(SPEGEL).strip(", ")
            name = f"{table}: {workload.label}, CPU" + (f", {variant}" if variant else "")
            yield Floor(name, found, 0.9, 0.75, unit=f"x {base}")


def _manifests(plan: Plan, results: Results) -> Iterator[Floor]:
    for workload in plan.of(MANIFESTS):
        if workload.method == "GET" and workload.connections > 1:
            yield _ratio(results, workload, 1.2, 1.0)
            if workload.connections == 16:
                yield _ratio(results, workload, 2.5, 2.0, base=GO_SPEGEL)
        elif workload.method == "HEAD" and workload.connections == 16:
            yield _ratio(results, workload, 0.95, 0.85)


def _cold(results: Results) -> Iterator[Floor]:
    ours = [sample for sample in results.cold if sample.server == SPEGEL]
    p99 = Spread.of(sample.late_p99 for sample in ours)
    worst = Spread.of(sample.late_max for sample in ours)
    yield Floor("cold 1 GiB: loop lateness, p99", p99, 5.0, 5.0, at_most=True, unit="ms")
    yield Floor("cold 1 GiB: loop lateness, max", worst, 10.0, 10.0, at_most=True, unit="ms")
    yield Floor("cold 1 GiB", results.cold_ratio(SPEGEL, GO), 0.9, 0.9, unit=f"x {GO}")


def _lifecycle(results: Results) -> Iterator[Floor]:
    own = results.own_memory
    idle = Spread.of([own.idle] if own else [])
    growth = Spread.of([own.growth] if own else [])
    yield Floor("RSS, idle", idle, 110.0, 110.0, at_most=True, unit="MiB")
    yield Floor("RSS growth under 16 x 1 GiB", growth, 8.0, 8.0, at_most=True, unit="MiB")
    allowed, took = results.graceful_timeout, results.stalled_stop
    stopped = Spread.of([] if allowed is None or took is None else [took])
    bar = (allowed or 0.0) + _STOP_MARGIN
    yield Floor("SIGTERM with a stalled reader", stopped, bar, bar, at_most=True, unit="s")


def _errors(results: Results) -> Floor:
    """Rates mean nothing if the answers were wrong."""
    ours = [
        sample.errors
        for table in (OWN, MIRROR, OWN_TLS, MIRROR_TLS, MANIFESTS, RANGES)
        for sample in results.of(table)
        if sample.server.startswith(SPEGEL)
    ]
    return Floor("answers that were wrong", Spread.of([sum(ours)] if ours else []), 0, 0, at_most=True)

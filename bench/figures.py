"""From samples to figures: medians with their range, and ratios within rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.cold import ColdSample
from bench.lifecycle import Memory
from bench.rounds import DISTURBED, Sample


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the range that it comes from."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None for no values."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known)) if known else None

    def text(self, digits: int) -> str:
        """``median (lowest-highest)``."""
        if self.lowest == self.highest:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.lowest:.{digits}f}-{self.highest:.{digits}f})"


@dataclass(slots=True)
class Results:
    """All that was measured."""

    samples: list[Sample] = field(default_factory=list)
    cold: list[ColdSample] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    own_memory: Memory | None = None
    mirror_memory: Memory | None = None
    stalled_stop: float | None = None
    graceful_timeout: float | None = None

    def of(self, table: str, load: str | None = None, server: str | None = None) -> list[Sample]:
        """The samples of a table, of one load and one server of it if they are given."""
        return [
            sample
            for sample in self.samples
            if sample.table == table and load in (None, sample.load) and server in (None, sample.server)
        ]

    def ratio(self, table: str, load: str, server: str, base: str) -> Spread | None:
        """How many times the rate of ``base`` in the same round; None if one of them was not measured."""
        return ratio(self.of(table, load, server), self.of(table, load, base))

    def cost_ratio(self, table: str, load: str, server: str, base: str) -> Spread | None:
        """How many times its CPU ``base`` needed in the same round; above 1 the server is cheaper."""
        costs = {sample.round: sample.cost for sample in self.of(table, load, base) if sample.bytes}
        own = [sample for sample in self.of(table, load, server) if sample.bytes and sample.cost]
        return Spread.of(costs[sample.round] / sample.cost for sample in own if sample.round in costs)

    def cold_ratio(self, server: str, base: str) -> Spread | None:
        """The same for the transfers from a cold page cache."""
        return ratio(
            [sample for sample in self.cold if sample.server == server],
            [sample for sample in self.cold if sample.server == base],
        )

    def disturbed(self) -> str:
        """How many samples were taken while the machine was busy with something else; empty if none was."""
        others = [sample.other for sample in [*self.samples, *self.cold]]
        if not (count := sum(other > DISTURBED for other in others)):
            return ""
        return (
            f"{count} of {len(others)} samples were taken while something else kept more than {DISTURBED:g} cores busy"
        )


def ratio(samples: Iterable[Sample | ColdSample], base: Iterable[Sample | ColdSample]) -> Spread | None:
    """The rate of each sample by that of ``base`` in the same round; None if there is no such pair."""
    by_round = {sample.round: sample.rate for sample in base}
    return Spread.of(sample.rate / by_round[sample.round] for sample in samples if by_round.get(sample.round))

# The slope is the median of the slopes between pairs of samples (Theil and Sen), which a few odd samples don't move.
# A short run can't tell a leak from noise, so a slope counts only if the growth that it stands for is more than noise.

"""Whether something grows, and whether the mirrors serve meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HOUR = 3600.0
_PAIRS_OF = 200
"""Samples that are compared with each other at most; more are thinned out."""

_UPSTREAM = 0.1
"""Share of blobs that may come from the upstream, while sidecars are restarted."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Growth an hour that is a leak, if what grew meanwhile is more than ``noise``."""

    what: str
    per_hour: float
    noise: float


@dataclass(frozen=True, slots=True)
class Growth:
    """How ``what`` of ``who`` went: at first, at last, and by how much an hour."""

    who: str
    bound: Bound
    first: float
    last: float
    per_hour: float
    seconds: float

    @property
    def is_leak(self) -> bool:
        return self.per_hour > self.bound.per_hour and self.per_hour * self.seconds / HOUR > self.bound.noise

    def __str__(self) -> str:
        return (
            f"{self.who} {self.bound.what}: {self.first:.0f} to {self.last:.0f} in {self.seconds / 60:.1f} min, "
            f"{self.per_hour:+.1f} an hour{' (too much)' if self.is_leak else ''}"
        )


def growth(who: str, bound: Bound, samples: Sequence[tuple[float, float]]) -> Growth:
    """Of samples (seconds, value) in the order of time; at least two."""
    kept = samples[:: len(samples) // _PAIRS_OF + 1]
    slopes = [
        (later[1] - sooner[1]) / (later[0] - sooner[0])
        for number, sooner in enumerate(kept)
        for later in kept[number + 1 :]
        if later[0] > sooner[0]
    ]
    tenth = max(1, len(samples) // 10)
    return Growth(
        who,
        bound,
        statistics.median(value for _, value in samples[:tenth]),
        statistics.median(value for _, value in samples[-tenth:]),
        statistics.median(slopes) * HOUR,
        samples[-1][0] - samples[0][0],
    )


def judged_upstream(asked: int, pulled: int) -> Iterator[str]:
    """What is wrong if the upstream was asked for ``asked`` blobs of ``pulled`` that peers had."""
    if asked > _UPSTREAM * pulled or not pulled:
        yield f"{asked} of {pulled} blobs came from the upstream, though peers had them"


def rises_at_last(samples: Sequence[tuple[float, float]]) -> bool:
    """Whether the value of samples (seconds, value) rose in the last quarter of their time."""
    if not samples:
        return False
    (first, _), (last, highest) = samples[0], samples[-1]
    return any(value < highest for at, value in samples if at >= last - (last - first) / 4)

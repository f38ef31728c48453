# prometheus_client's histogram takes a lock for each of its values and tries the buckets one after the other.  Answers
# are counted by one thread, so two list operations do: a fifth of the time, on the path where it matters most.

"""Histograms for the hot path: to be fed by the event loop's thread alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class HistogramCounts:
    """The histogram of one set of labels."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class LabelledHistogram:
    """A histogram with labels; ``buckets`` are the upper bounds, without infinity."""

    def __init__(self, name: str, about: str, label_names: Sequence[str], buckets: Sequence[float]) -> None:
        self.name, self.about, self.label_names = name, about, tuple(label_names)
        self._bounds = tuple(buckets)
        self._children: dict[tuple[str, ...], HistogramCounts] = {}

    def labels(self, *values: object) -> HistogramCounts:
        """The one with these values of the labels; keep it, where it is used often."""
        key = tuple(map(str, values))
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = HistogramCounts(self._bounds)
        return child

    def family(self) -> HistogramMetricFamily:
        """What is scraped. Children that have counted nothing yet are left out."""
        family = HistogramMetricFamily(self.name, self.about, labels=self.label_names)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, child in list(self._children.items()):
            reached, buckets = 0, []
            for name, count in zip(names, child.counts, strict=True):
                reached += count
                buckets.append((name, reached))
            if reached:
                family.add_metric(values, buckets, child.sum)
        return family

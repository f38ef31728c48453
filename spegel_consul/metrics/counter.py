"""Counters and times that the status page shows as well as Prometheus.

prometheus_client's counters can only be read by a scrape, so a value that both show is kept here. Only the event loop's
thread updates it, so there is no lock. A metric that only Prometheus shows can be prometheus_client's own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client.core import CounterMetricFamily


class Count:
    """The counter of one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count ``amount``, which must not be negative."""
        self.value += amount


class LabelledCounter:
    """A counter with labels; the scraped name ends in ``_total``."""

    def __init__(self, name: str, about: str, label_names: Sequence[str]) -> None:
        self.name, self.about, self.label_names = name, about, tuple(label_names)
        self.children: dict[tuple[str, ...], Count] = {}
        """By the values of the labels."""

    def labels(self, *values: str) -> Count:
        """The counter of these label values; callers on the hot path keep it."""
        child = self.children.get(values)
        if child is None:
            child = self.children[values] = Count()
        return child

    def family(self) -> CounterMetricFamily:
        """The metric for the scrape."""
        family = CounterMetricFamily(self.name, self.about, labels=self.label_names)
        for values, child in self.children.items():
            family.add_metric(values, child.value)
        return family


class LastTime:
    """The Unix time of the last event of a kind; 0 before the first."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set_to_current_time(self) -> None:
        """Record the event now."""
        self.value = time.time()

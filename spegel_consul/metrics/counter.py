"""Counters and times that the status page shows as well as Prometheus.

prometheus_client's counters can only be read by a scrape, so a figure of both is kept here and read by both. They are
fed by the event loop's thread alone and take no lock. A metric that only Prometheus shows can be prometheus_client's
own.
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
    """A counter with labels; the name that is scraped ends in ``_total``."""

    def __init__(self, name: str, about: str, label_names: Sequence[str]) -> None:
        self.name, self.about, self.label_names = name, about, tuple(label_names)
        self.children: dict[tuple[str, ...], Count] = {}
        """By the values of the labels."""

    def labels(self, *values: str) -> Count:
        """The one with these values of the labels; keep it, where it is used often."""
        child = self.children.get(values)
        if child is None:
            child = self.children[values] = Count()
        return child

    def family(self) -> CounterMetricFamily:
        """What is scraped."""
        family = CounterMetricFamily(self.name, self.about, labels=self.label_names)
        for values, child in self.children.items():
            family.add_metric(values, child.value)
        return family


class LastTime:
    """When something happened last, as Unix time; 0 while it has not."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set_to_current_time(self) -> None:
        """It happens now."""
        self.value = time.time()

"""The traffic of one sidecar in the last day: what neighbours answered, and what that saved.

The counters are those of the metrics; :class:`MinuteHistory` has their totals of each minute. The status page, the API
and the overview of the cluster read the same figures from here. A further counter with a history belongs here.
"""

from __future__ import annotations

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.metrics.minute_history import DAY, MinuteHistory
from spegel_consul.metrics.sidecar_metrics import Metrics

_HOUR = 60
_PARTS = 48
_SHORT_RUN = 2 * _HOUR


@dataclass(frozen=True, slots=True)
class Traffic:
    """``hits`` and ``misses`` are requests that were looked up at peers; ``from_peers`` and ``own`` are sent bytes."""

    hits: int = 0
    misses: int = 0
    from_peers: int = 0
    own: int = 0

    @property
    def requests(self) -> int:
        return self.hits + self.misses

    def to_json(self) -> dict[str, int]:
        """The figures in the API."""
        return {"hits": self.hits, "misses": self.misses, "bytes_from_peers": self.from_peers, "bytes_own": self.own}

    @property
    def hit_ratio(self) -> float | None:
        """The share of requests that a neighbour answered; None without a request."""
        return self.hits / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class Lines:
    """The figures of :class:`Traffic` in equal parts of the last ``minutes``, the oldest part first."""

    minutes: int
    hits: list[float]
    misses: list[float]
    from_peers: list[float]
    own: list[float]


class TrafficHistory:
    """The history of the counters of ``metrics``; :meth:`note` is to be called at least once a minute."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._minutes = MinuteHistory(4)
        self._began: float | None = None
        self._now = 0.0

    def note(self, now: float) -> None:
        """Note the counters at ``now``, in seconds of a clock that does not go backwards."""
        if self._began is None:
            self._began = now
        self._now = max(self._now, now)
        hits, misses = self._metrics.mirrored()
        served = self._metrics.served_bytes
        self._minutes.note(now, (hits, misses, served.labels("peer").value, served.labels("own").value))

    def day(self) -> Traffic:
        """The traffic of the last 24 hours, or of the time since the start if that is shorter."""
        return Traffic(*map(int, self._minutes.growth(DAY)))

    def lines(self) -> Lines:
        """The traffic of the last day in half hours; of a sidecar that is up for less than two hours, of the last hour
        in minutes."""
        short = self._now - (self._began or 0.0) < 60 * _SHORT_RUN
        minutes, parts = (_HOUR, _HOUR) if short else (DAY, _PARTS)
        return Lines(minutes, *(self._minutes.bars(number, minutes, parts) for number in range(4)))

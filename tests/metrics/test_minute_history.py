"""The history of counters: any span of notes and gaps gives the growth that the counters had."""

from __future__ import annotations

import pytest

from spegel_consul.metrics.minute_history import DAY, MinuteHistory
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.metrics.traffic_history import Traffic, TrafficHistory


def at(minute: float) -> float:
    return 60.0 * minute


def test_the_growth_of_a_span_is_that_of_its_minutes() -> None:
    history = MinuteHistory(2, minutes=10)
    for minute in range(25):
        history.note(at(minute), (minute + 1, 10.0 * (minute + 1)))
    assert history.growth(1) == [1, 10]
    assert history.growth(10) == [10, 100]
    assert history.bars(0, 10, 5) == [2] * 5
    assert history.bars(1, 3, 3) == [10] * 3


def test_all_that_was_counted_since_the_start_is_in_a_longer_span() -> None:
    history = MinuteHistory(1)
    history.note(at(7) + 5, [3])
    history.note(at(7) + 55, [4])
    assert history.growth(DAY) == [4]
    assert history.bars(0, DAY, 48) == [0] * 47 + [4]


@pytest.mark.parametrize("gap", [1, 2, 9, 10, 11, 12, 35])
def test_minutes_without_a_note_have_the_totals_of_the_one_before(gap: int) -> None:
    history = MinuteHistory(1, minutes=10)
    for minute in range(20):
        history.note(at(minute), [2.0 * minute])
    history.note(at(19 + gap), [100.0])
    assert history.bars(0, 1, 1) == [62]
    before = sum(history.bars(0, 10, 10)[:-1])
    assert before == max(0, 2 * (10 - gap))


def test_before_the_first_note_nothing_was() -> None:
    history = MinuteHistory(1)
    assert history.growth(DAY) == [0]
    assert history.bars(0, 60, 60) == [0] * 60


def test_a_clock_that_stands_or_goes_back_changes_no_other_minute() -> None:
    history = MinuteHistory(1, minutes=10)
    history.note(at(5), [1])
    history.note(at(4), [2])
    assert history.bars(0, 2, 2) == [0, 2]


def test_traffic_of_the_last_day_and_not_of_the_day_before() -> None:
    metrics = Metrics()
    history = TrafficHistory(metrics)
    count = metrics.mirror_requests.labels
    for minute in range(2 * DAY):
        count("docker.io", "hit").inc(3)
        count("ghcr.io", "hit").inc()
        count("ghcr.io", "miss").inc()
        metrics.served_bytes.labels("peer").inc(100)
        history.note(at(minute))
        if minute == 59:
            assert history.day() == Traffic(240, 60, 6000, 0)
            assert history.lines().hits == [4] * 60
    assert history.day() == Traffic(4 * DAY, DAY, 100 * DAY, 0)
    assert history.day().hit_ratio == 0.8
    lines = history.lines()
    assert (lines.minutes, lines.misses, lines.own) == (DAY, [30] * 48, [0] * 48)
    assert Traffic().hit_ratio is None

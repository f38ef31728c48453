import random

import pytest

from tests.soak.growth import Bound, growth, judged_upstream, rises_at_last
from tests.soak.soak import _HITS

BOUND = Bound("things", per_hour=10, noise=5)


def samples(per_hour: float, minutes: int, noise: float = 0.0) -> list[tuple[float, float]]:
    source = random.Random(1)
    return [(t, 100 + per_hour * t / 3600 + source.uniform(-noise, noise)) for t in range(0, minutes * 60, 5)]


@pytest.mark.parametrize(
    ("per_hour", "minutes", "leaks"), [(0, 60, False), (9, 60, False), (12, 60, True), (12, 10, False)]
)
def test_a_slope_counts_if_it_stands_for_more_than_noise(per_hour: float, minutes: int, leaks: bool) -> None:
    found = growth("n0", BOUND, samples(per_hour, minutes))
    assert found.per_hour == pytest.approx(per_hour)
    assert found.is_leak is leaks


def test_peaks_are_no_growth() -> None:
    spiky = [(t, value + (500 if number % 7 == 0 else 0)) for number, (t, value) in enumerate(samples(0, 30, 2.0))]
    assert abs(growth("n0", BOUND, spiky).per_hour) < 5


def test_what_grows_under_noise_is_seen() -> None:
    assert growth("n0", BOUND, samples(60, 30, 10.0)).is_leak


@pytest.mark.parametrize(
    ("asked", "pulled", "is_right"), [(0, 500, True), (40, 500, True), (400, 500, False), (0, 0, False)]
)
def test_blobs_that_peers_have_come_from_them(asked: int, pulled: int, is_right: bool) -> None:
    assert (list(judged_upstream(asked, pulled)) == []) is is_right


def test_hits_rise_to_the_end() -> None:
    rising = [(float(t), float(t // 10)) for t in range(0, 400, 3)]
    assert rises_at_last(rising)
    assert not rises_at_last([(at, min(hits, 25.0)) for at, hits in rising])
    assert not rises_at_last([])


def test_hits_are_read_of_all_registries() -> None:
    name = "spegel_mirror_requests_total"
    lines = ['{registry="a",cache="hit"} 3.0', '{cache="hit",registry="b"} 4', '{registry="a",cache="miss"} 9']
    assert _HITS.findall("".join(f"{name}{line}\n" for line in lines)) == ["3.0", "4"]

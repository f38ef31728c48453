"""Since when a tag stands for its digest: the times of a runtime, and what the store itself has seen."""

from __future__ import annotations

import pytest

from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.store.index import ImageRecord
from spegel_consul.store.tag_times import OLDEST, TagTimes

NAME = "docker.io/library/app:prod"
V1, V2 = Digest.of(b"1"), Digest.of(b"2")
NOON = 1_800_000_000.0  # Unix time
HOUR = 3600.0


def record(digest: Digest = V1, updated_at: float | None = NOON, **labels: str) -> ImageRecord:
    return ImageRecord(NAME, Descriptor(digest, 9, OCI_MANIFEST), updated_at, tuple(sorted(labels.items())))


@pytest.fixture
def times() -> TagTimes:
    """A tag that its runtime had for an hour when it was listed first, at second 100 of the loop."""
    times = TagTimes()
    times.listed([record()], 100.0, NOON + HOUR)
    return times


def test_the_age_counts_from_the_time_of_the_runtime_and_by_the_clock_of_the_loop(times: TagTimes) -> None:
    assert times.age(NAME, V1, 100.0) == HOUR
    assert times.age(NAME, V1, 160.0) == HOUR + 60
    assert times.age(NAME, V2, 160.0) is None
    assert times.age("docker.io/library/other:v1", V1, 160.0) is None


@pytest.mark.parametrize("updated_at", [None, NOON + 3 * HOUR, NOON - OLDEST, 0.0, -1e12])
def test_a_record_of_the_future_or_of_long_ago_has_no_age(updated_at: float | None) -> None:
    times = TagTimes()
    times.listed([record(updated_at=updated_at)], 100.0, NOON + HOUR)
    assert times.age(NAME, V1, 100.0) is None


def test_a_clock_that_was_corrected_by_a_second_makes_no_record_of_the_future() -> None:
    times = TagTimes()
    times.listed([record(updated_at=NOON + 1)], 100.0, NOON)
    assert times.age(NAME, V1, 100.0) == 0.0


@pytest.mark.parametrize("updated_at", [NOON + HOUR + 10, NOON - 5 * HOUR, NOON + 9 * HOUR, None])
def test_a_tag_that_moves_is_as_young_as_what_was_seen_says(times: TagTimes, updated_at: float | None) -> None:
    """The clock of the day may be off by hours; the move came after the last list."""
    times.saw(record(V2, updated_at), 110.0, NOON + HOUR + 10)
    age = times.age(NAME, V2, 110.0)
    assert age is not None
    assert 0.0 <= age <= 10.0
    assert times.age(NAME, V1, 110.0) is None


def test_a_step_of_the_clock_changes_no_age(times: TagTimes) -> None:
    for step, now in ((-2 * HOUR, 130.0), (5 * HOUR, 160.0)):
        times.listed([record()], now, NOON + HOUR + (now - 100.0) + step)
        assert times.age(NAME, V1, now) == HOUR + (now - 100.0)


def test_a_pull_that_finds_the_same_digest_confirms_it(times: TagTimes) -> None:
    times.saw(record(updated_at=NOON + HOUR + 19), 120.0, NOON + HOUR + 20)
    assert times.age(NAME, V1, 120.0) == 1.0


def test_a_label_confirms_nothing(times: TagTimes) -> None:
    times.saw(record(updated_at=NOON + HOUR + 19, pinned="pinned"), 120.0, NOON + HOUR + 20)
    assert times.age(NAME, V1, 120.0) == HOUR + 20
    times.saw(record(updated_at=NOON + HOUR + 29, pinned="pinned"), 130.0, NOON + HOUR + 30)
    assert times.age(NAME, V1, 130.0) == 1.0


def test_what_came_while_the_runtime_was_away_came_after_the_last_list(times: TagTimes) -> None:
    times.listed([record(V2, NOON + HOUR + 600)], 1300.0, NOON + HOUR + 1200)
    assert times.age(NAME, V2, 1300.0) == 600.0


def test_a_name_that_is_gone_has_no_age(times: TagTimes) -> None:
    times.drop(NAME)
    assert times.age(NAME, V1, 100.0) is None
    times.listed([], 130.0, NOON)
    times.listed([record()], 160.0, NOON + 2 * HOUR)
    assert times.age(NAME, V1, 160.0) == 30.0

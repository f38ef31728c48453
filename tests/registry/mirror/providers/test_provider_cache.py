"""Providers that were found a moment ago."""

from __future__ import annotations

import pytest
import trio

from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers import provider_cache as module
from spegel_consul.registry.mirror.providers.provider_cache import FRESH, RecentProviders

FIRST, SECOND = (Provider(f"peer{number}", (f"10.0.0.{number}", 5000)) for number in (1, 2))


async def test_each_is_fresh_for_as_long_as_it_was_found_last(autojump_clock: trio.testing.MockClock) -> None:
    recent = RecentProviders()
    assert recent.get("key") == []
    recent.add("key", FIRST)
    await trio.sleep(FRESH * 0.6)
    recent.add("key", SECOND)
    assert recent.get("key") == [FIRST, SECOND]
    assert recent.get("other") == []
    await trio.sleep(FRESH * 0.6)
    assert recent.get("key") == [SECOND]
    recent.add("key", SECOND)
    await trio.sleep(FRESH * 0.6)
    assert recent.get("key") == [SECOND]
    await trio.sleep(FRESH * 0.6)
    assert recent.get("key") == []
    assert not recent._found


async def test_one_that_is_dropped_is_gone_for_that_key_alone(autojump_clock: trio.testing.MockClock) -> None:
    recent = RecentProviders()
    for key in ("key", "other"):
        recent.add(key, FIRST)
        recent.add(key, SECOND)
    recent.drop("key", FIRST)
    recent.drop("key", Provider("peer3", ("10.0.0.3", 5000)))
    recent.drop("unknown", FIRST)
    assert recent.get("key") == [SECOND]
    assert recent.get("other") == [FIRST, SECOND]
    recent.drop("key", SECOND)
    assert recent.get("key") == []


async def test_the_record_that_was_found_last_counts(autojump_clock: trio.testing.MockClock) -> None:
    """Two records of one peer and address may name different secondary addresses."""
    recent = RecentProviders()
    for other in (("fd00::1", 5000), ("fd00::2", 5000), None):
        recent.add("key", Provider("peer", ("10.0.0.1", 5000), other))
        assert [each.secondary for each in recent.get("key")] == [other]


async def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST", 4)
    recent = RecentProviders()
    for number in range(10):
        recent.add(f"key{number}", FIRST)
    assert [key for key in map("key{}".format, range(10)) if recent.get(key)] == ["key6", "key7", "key8", "key9"]
    recent.add("key6", SECOND)  # asked for again, so it is the latest
    recent.add("key10", FIRST)
    assert recent.get("key6") == [FIRST, SECOND]
    assert recent.get("key7") == []


async def test_what_is_stale_goes_by_and_by_as_others_come(autojump_clock: trio.testing.MockClock) -> None:
    recent = RecentProviders()
    for number in range(100):
        recent.add(f"key{number}", FIRST)
    await trio.sleep(FRESH)
    for number in range(100):
        recent.add(f"new{number}", FIRST)
    assert len(recent._found) == 100

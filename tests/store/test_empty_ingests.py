"""Whether the runtime downloads anything is known without a look while the directory of ingests does not change."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import trio.testing
from conformance.downloads import BODY

from spegel_consul.disk import foreign_files
from spegel_consul.store.containerd.ingests import SHARED
from tests.store.observed_ingests import Observed, observed

__all__ = ["observed"]


async def at_work(observed: Observed, clock: trio.testing.MockClock) -> int | None:
    clock.jump(2 * SHARED)
    return await observed.ingests.at_work()


def make_old(directory: Path) -> None:
    """As if it had been changed long ago, because a change of this moment might not be the last of its tick."""
    os.utime(directory, (1_700_000_000, 1_700_000_000))


async def test_a_directory_without_ingests_is_looked_at_once(
    observed: Observed, mock_clock: trio.testing.MockClock
) -> None:
    observed.content.begin(BODY, namespace="moby")
    ingest = observed.content.root / "ingest"
    make_old(ingest)
    for _ in range(3):
        assert await at_work(observed, mock_clock) is None
    assert observed.looks == 1
    observed.content.begin(BODY)
    assert await at_work(observed, mock_clock) == 0
    assert observed.looks == 2, "the new ingest has changed the directory"
    make_old(ingest)
    assert await at_work(observed, mock_clock) == 0
    assert observed.looks == 3, "an ingest grows without a change of the directory"


async def test_a_directory_that_comes_and_goes(observed: Observed, mock_clock: trio.testing.MockClock) -> None:
    ingest = observed.content.root / "ingest"
    shutil.rmtree(ingest, ignore_errors=True)
    for _ in range(3):
        assert await at_work(observed, mock_clock) is None
    assert observed.looks == 1, "there is none"
    ingest.mkdir()
    observed.content.begin(BODY)
    assert await at_work(observed, mock_clock) == 0
    shutil.rmtree(ingest)
    assert await at_work(observed, mock_clock) is None
    assert observed.looks == 3


async def test_a_directory_of_this_moment_is_looked_at_again(
    observed: Observed, mock_clock: trio.testing.MockClock
) -> None:
    """The next ingest may bear the same time, because the clock of files ticks every few milliseconds."""
    observed.content.begin(BODY, namespace="moby")
    for looks in (1, 2):
        os.utime(observed.content.root / "ingest")
        assert await at_work(observed, mock_clock) is None
        assert observed.looks == looks


async def test_a_file_system_with_whole_seconds(
    observed: Observed, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = observed.content.root / "ingest"
    second = time.time_ns() // 1_000_000_000 * 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: second + 350_000_000)
    os.utime(ingest, ns=(second, second))
    assert await at_work(observed, mock_clock) is None
    observed.content.begin(BODY)
    os.utime(ingest, ns=(second, second))
    assert await at_work(observed, mock_clock) == 0


async def test_a_slow_look_is_no_surer(
    observed: Observed, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What begins while refs are read may bear the time at which the directory was listed."""
    ingest = observed.content.root / "ingest"
    observed.content.begin(BODY, namespace="moby")
    stamp = ingest.stat().st_mtime_ns
    read, now = foreign_files.read, time.time_ns()

    def slow(path: str, limit: int, **how: bool) -> bytes:
        observed.content.begin(b"other" + BODY)
        os.utime(ingest, ns=(stamp, stamp))
        monkeypatch.setattr(foreign_files, "read", read)
        monkeypatch.setattr(time, "time_ns", lambda: now + 60_000_000_000)
        return read(path, limit, **how)

    monkeypatch.setattr(foreign_files, "read", slow)
    assert await at_work(observed, mock_clock) is None
    assert await at_work(observed, mock_clock) == 0


async def test_an_ingest_without_its_ref_is_looked_at_again(
    observed: Observed, mock_clock: trio.testing.MockClock
) -> None:
    """The runtime writes it a moment later, and that changes only the ingest's own directory."""
    begun = observed.content.begin(BODY)
    ref = (begun.path / "ref").read_bytes()
    (begun.path / "ref").unlink()
    make_old(observed.content.root / "ingest")
    assert await at_work(observed, mock_clock) is None
    (begun.path / "ref").write_bytes(ref)
    make_old(observed.content.root / "ingest")
    assert await at_work(observed, mock_clock) == 0


async def test_an_idle_runtime_is_known_without_a_look(observed: Observed, mock_clock: trio.testing.MockClock) -> None:
    ingest = observed.content.root / "ingest"
    make_old(ingest)
    assert not observed.ingests.is_idle(), "nobody has looked yet"
    await at_work(observed, mock_clock)
    looks = observed.looks
    assert observed.ingests.is_idle()
    begun = observed.content.begin(BODY)
    assert not observed.ingests.is_idle()
    await at_work(observed, mock_clock)
    make_old(ingest)
    assert not observed.ingests.is_idle(), "an ingest is there"
    await begun.commit()
    assert observed.looks == looks + 1

"""How many connections an address may have, and how many files the process."""

from __future__ import annotations

import resource

import pytest
from structlog.testing import capture_logs

from spegel_consul.http.server.connection_limits import (
    ENOUGH_FILES,
    FILES_EACH,
    MOST_EACH,
    MOST_FILES,
    RESERVED,
    ConnectionLimits,
    raise_limit,
)


async def test_one_address_has_a_share_and_all_together_another() -> None:
    limits = ConnectionLimits(RESERVED + 1000)
    with capture_logs() as said:
        assert sum(limits.enter("10.0.0.1") for _ in range(2000)) == 125
    assert [line["address"] for line in said] == ["10.0.0.1"]
    assert sum(limits.enter(f"10.0.1.{number}") for number in range(250) for _ in range(10)) == 125
    limits.leave("10.0.0.1")
    assert limits.enter("10.0.0.2")
    assert not limits.enter("10.0.0.1")
    large = ConnectionLimits(1 << 20)
    assert sum(large.enter("10.0.0.1") for _ in range(10_000)) == MOST_EACH


@pytest.mark.parametrize("files", [256, 1024, 4096, ENOUGH_FILES, MOST_FILES])
async def test_all_files_of_all_connections_leave_the_reserve(files: int) -> None:
    limits = ConnectionLimits(files)
    standing = sum(limits.enter(f"address {number}") for number in range(files))
    assert standing > 0
    assert standing * FILES_EACH + RESERVED <= files


async def test_a_connection_is_possible_with_few_files() -> None:
    limits = ConnectionLimits(64)
    assert limits.enter("10.0.0.1")
    assert not limits.enter("10.0.0.2")


async def test_who_has_left_is_forgotten() -> None:
    limits = ConnectionLimits(1000)
    for number in range(5000):
        assert limits.enter(f"address {number}")
        limits.leave(f"address {number}")
    assert not limits._inside


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """The process's limit of files, of which nothing comes true."""
    now = {"limit": (1024, 1 << 20)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: now["limit"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: now.update(limit=limit))
    return now


@pytest.mark.parametrize(
    ("before", "after", "warned"),
    [
        ((1024, 1 << 20), (MOST_FILES, 1 << 20), False),
        ((1024, 20_000), (20_000, 20_000), False),
        ((1024, 4096), (4096, 4096), True),
        ((1024, 1024), (1024, 1024), True),
        ((1 << 20, 1 << 20), (1 << 20, 1 << 20), False),
        ((1024, resource.RLIM_INFINITY), (MOST_FILES, resource.RLIM_INFINITY), False),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (resource.RLIM_INFINITY, resource.RLIM_INFINITY), False),
    ],
)
def test_the_limit_is_raised(
    limits: dict[str, tuple[int, int]], before: tuple[int, int], after: tuple[int, int], warned: bool
) -> None:
    limits["limit"] = before
    with capture_logs() as said:
        files = raise_limit()
    assert limits["limit"] == after
    assert files == (after[0] if after[0] != resource.RLIM_INFINITY else MOST_FILES)
    warnings = [line for line in said if line["log_level"] == "warning"]
    assert bool(warnings) == warned
    if warned:
        assert "nofile" in warnings[0]["event"]
        assert (warnings[0]["allowed"], warnings[0]["wanted"]) == (files, ENOUGH_FILES)

"""How many files this process may have open, and who gets them."""

from __future__ import annotations

import resource

import pytest
from structlog.testing import capture_logs

from spegel_consul.ring.net.ring_files import RING_FILES
from spegel_consul.sidecar.open_files import ENOUGH_FILES, MOST_FILES, RESERVED, raise_limit, shares


@pytest.mark.parametrize("files", [256, 1024, 4096, ENOUGH_FILES, MOST_FILES])
def test_the_shares_leave_the_reserve(files: int) -> None:
    share = shares(files)
    assert share.ring > 0
    assert share.http >= share.ring
    assert share.ring + share.http + RESERVED == files


def test_a_usual_limit_is_enough_for_the_largest_ring() -> None:
    assert shares(ENOUGH_FILES).ring == RING_FILES
    assert shares(64).ring == shares(64).http == 0


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
        assert warnings[0]["connections_of_the_ring"] == shares(files).ring

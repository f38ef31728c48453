"""How many connections an address may have, and all other machines together."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from spegel_consul.http.server.connection_limits import FILES_EACH, MOST_EACH, ConnectionLimits


async def test_one_address_has_a_share_and_all_together_another() -> None:
    limits = ConnectionLimits(1000)
    with capture_logs() as said:
        assert sum(limits.enter("10.0.0.1") for _ in range(2000)) == 125
    assert [line["address"] for line in said] == ["10.0.0.1"]
    assert sum(limits.enter(f"10.0.1.{number}") for number in range(250) for _ in range(10)) == 125
    limits.leave("10.0.0.1")
    assert limits.enter("10.0.0.2")
    assert not limits.enter("10.0.0.1")
    large = ConnectionLimits(1 << 20)
    assert sum(large.enter("10.0.0.1") for _ in range(10_000)) == MOST_EACH


@pytest.mark.parametrize("files", [64, 448, 59_264])
async def test_all_files_of_all_connections_are_within_the_share(files: int) -> None:
    limits = ConnectionLimits(files)
    standing = sum(limits.enter(f"address {number}") for number in range(files))
    assert 0 < standing * FILES_EACH <= files


async def test_a_connection_is_possible_with_few_files() -> None:
    limits = ConnectionLimits(0)
    assert limits.enter("10.0.0.1")
    assert not limits.enter("10.0.0.2")


async def test_who_has_left_is_forgotten() -> None:
    limits = ConnectionLimits(1000)
    for number in range(5000):
        assert limits.enter(f"address {number}")
        limits.leave(f"address {number}")
    assert not limits._inside

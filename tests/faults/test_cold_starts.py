"""Each fault of a cold start is a test, and all of them happen to the same nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import parts, thorough

from tests.faults import cold_starts
from tests.faults.catalog import COLD_STARTS, Fault
from tests.faults.cold_scene import ColdScene, TooManyCopies
from tests.faults.table import cold_row_of

pytestmark = pytest.mark.real

assert cold_starts  # it has listed its own

TRIES = 3


@pytest.fixture(scope="module")
def scene() -> Iterator[ColdScene]:
    parts.check()
    with ColdScene() as scene:
        yield scene


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, id=fault.name) for fault in COLD_STARTS if thorough.ALL or not fault.takes_minutes]
)
def test_no_pull_fails(scene: ColdScene, fault: Fault, record_property) -> None:
    told = len(scene.rows)
    try:
        # a download that a busy machine stops for seconds looks slow, and a takeover from a slow one is one more copy
        for left in reversed(range(TRIES)):
            try:
                fault.do(scene)
                break
            except TooManyCopies:
                if not left:
                    raise
                scene.mend()
    except BaseException:
        scene.mend()
        raise
    finally:
        for row in scene.rows[told:]:
            record_property("table", cold_row_of(row))

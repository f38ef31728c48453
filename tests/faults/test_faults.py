"""Each fault is a test, and all of them happen to one cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import parts, thorough

from tests.faults import consul, crowds, machine, network, runtimes, sidecars
from tests.faults.catalog import FAULTS, Fault
from tests.faults.scene import Scene
from tests.faults.table import row_of

pytestmark = pytest.mark.real

assert all((consul, crowds, machine, network, runtimes, sidecars))  # they have listed theirs


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    parts.check()
    with Scene() as scene:
        yield scene


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, id=fault.name) for fault in FAULTS if thorough.ALL or not fault.takes_minutes]
)
def test_no_pull_fails(scene: Scene, fault: Fault, record_property) -> None:
    told = len(scene.rows)
    try:
        fault.do(scene)
    except BaseException:
        scene.mend()
        raise
    finally:
        for row in scene.rows[told:]:
            record_property("table", row_of(row))

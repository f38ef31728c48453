"""A short soak on the cluster that went through all faults; ``make soak`` runs an hour on a fresh one."""

from __future__ import annotations

import pytest

from tests.faults.scene import Scene
from tests.soak.soak import Soak

pytestmark = pytest.mark.real


def test_nothing_grows(scene: Scene) -> None:
    soak = Soak(scene)
    soak.run(25)
    assert soak.images > 3
    assert [str(growth) for growth in soak.growths(warm_up=5) if growth.is_leak] == []

"""A full disk, and a clock that is wrong."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from lab.wall_clock import WallClock

from tests.faults.catalog import fault
from tests.faults.scene import Scene, lasting


@fault("disk full", takes_minutes=True)
def the_disk_is_full(scene: Scene) -> None:
    """There is room for the identity when it starts, and for nothing after that."""
    node = scene.nodes[6]
    with scene.fault("disk of the data directory full", unasked=(node,)):
        node.sidecar.kill9()
        data = node.dir / "small"
        data.mkdir(exist_ok=True)
        scene.start(node, mounts={data: "size=64k"}, data_dir=data)
        node.sidecar.await_ready(60)
        # only the sidecar sees this file system
        inside = Path(f"/proc/{node.sidecar.process.pid}/root{data}")
        scene.until(lambda: any(inside.iterdir()), timeout=20, what="it has an identity")
        with (inside / "full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
            while True:
                full.write(bytes(4096))
        time.sleep(lasting(40, 3))
        assert node.sidecar.process.alive
    with scene.fault("sidecar with a full disk stopped, started with a new one", unasked=(node,)):
        assert node.sidecar.stop(20) == 0
        scene.start(node)


def the_clock_is_wrong(scene: Scene, shift: str) -> None:
    """Of the wall: what measures time within a process does not follow it."""
    node = scene.nodes[3]
    clock = WallClock(node.dir / "clock")
    with scene.fault(f"clock of a sidecar steps by {shift}, and back", unasked=(node,)):
        node.sidecar.kill9()
        scene.start(node, env=clock.env)
        node.sidecar.await_ready(60)
        scene.await_one_ring()
        clock.set(shift)
        time.sleep(lasting(20, 3))
        scene.await_one_ring()
        clock.set("+0")
        time.sleep(lasting(10, 1))
        node.sidecar.kill9()
        scene.start(node)


for shift in ("+1d", "-1d", "+40s"):
    fault(f"clock {shift}", takes_minutes=True)(partial(the_clock_is_wrong, shift=shift))

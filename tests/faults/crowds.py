"""A client that has gone wild, as far as the node's own runtime and Consul's check notice it."""

from __future__ import annotations

import http.client
import json
import sys
import time
from pathlib import Path

from lab.cluster import Node
from lab.sidecar import METRICS_PORT, REGISTRY_PORT

from tests.faults.catalog import fault
from tests.faults.scene import Scene, lasting

RATE = 533
"""Connections a second, each with a request for a digest that nobody has."""

_ANSWERS = ("404", "429", "503")
"""Statuses that a client gets for what nobody has, or that asks too much."""

_CHECK_TIMEOUT = 5.0  # seconds, those of the check in Consul's catalog


def answers(node: Node, port: int) -> bool:
    """Whether the node's own check gets its answer in time."""
    try:
        return node.netns.request("GET", node.ip, port, "/livez", timeout=_CHECK_TIMEOUT).status == 200
    except (OSError, http.client.HTTPException):
        return False


def came_about(summary: str, rate: float) -> str:
    """Why the flood that printed ``summary`` was none of ``rate`` a second; empty if it was.

    A busy machine answers few of so many, and the connection limits close others.
    """
    counts = json.loads(summary)
    if counts["rate"] < rate / 2:
        return f"only {counts['rate']} connections a second: {summary}"
    return "" if sum(counts.get(status, 0) for status in _ANSWERS) else f"none was answered as documented: {summary}"


@fault("misses")
def a_client_asks_for_what_nobody_has(scene: Scene) -> None:
    victim = scene.nodes[3]
    seconds = lasting(20, 6)
    argv = [sys.executable, "-m", "tests.faults.flood", victim.ip, str(REGISTRY_PORT)]
    argv += ["--rate", str(RATE), "--seconds", str(seconds)]
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with scene.fault(f"{RATE} misses a second from one address"):
        flood = scene.outside.netns.start("flood", argv, log_path=scene.outside.dir / "flood.log", env=env)
        checks: list[bool] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            checks += [answers(victim, port) for port in (REGISTRY_PORT, METRICS_PORT)]
            time.sleep(0.2)
        assert flood.wait(30) == 0, flood.tail()
        problem = came_about(flood.log().splitlines()[-1], RATE)
        assert not problem, problem
        assert all(checks), f"{checks.count(False)} of {len(checks)} checks of the node itself failed"
        assert victim.sidecar.process.alive

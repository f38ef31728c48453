"""The benchmark of a cold start measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lab.process import HANG

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


def test_two_nodes_without_help_take_two_copies(tmp_path: Path) -> None:
    file = tmp_path / "herd.json"
    nodes = ["--nodes", "2", "--runtime", "1.7,docker28"]
    options = [*nodes, "--upstream", "100mbit", "--mirror", "none,off", "--image", "2x2MiB,300KiB"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.herd", *options, "--json", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    assert "2 nodes with 1.7, docker28 start together" in done.stdout
    assert done.stderr == ""
    rounds = json.loads(file.read_text())["rounds"]
    assert [each["mirror"] for each in rounds] == ["none", "off"]
    for each in rounds:
        assert not any(pull["problem"] for pull in each["pulls"])
    # three layers, busybox and the configuration, for each of two nodes
    assert len(rounds[0]["blob_requests"]) == 10 >= len(rounds[1]["blob_requests"])
    assert rounds[0]["copies"] == pytest.approx(2.0, abs=0.2)
    assert rounds[1]["copies"] < 2.2  # a node that begins late finds content on the other one
    assert rounds[0]["sidecars_cpu_seconds"] == 0 < rounds[1]["sidecars_cpu_seconds"]

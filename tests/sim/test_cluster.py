# Whole clusters in virtual time, see world.py.  `python -m tests.sim` runs more of them, and larger ones.

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

from spegel_consul.ring.kad import KadRouter
from tests.sim.world import run

ROOT = Path(__file__).parents[2]
NODES, SEEDS = 24, 2


def _simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.sim", "--nodes", str(NODES), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_clusters_become_one_ring_after_faults_and_a_seed_replays_exactly() -> None:
    ran = _simulate("--seeds", str(SEEDS))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    digests = re.findall(r"^seed (\d+): ok, .* KiB/node, (\w{12}),", ran.stdout, re.MULTILINE)
    assert [seed for seed, _ in digests] == [str(seed) for seed in range(SEEDS)]
    again = _simulate("--seed-from", str(SEEDS - 1), "--seeds", "1")
    assert digests[-1][1] in again.stdout, ran.stdout + again.stdout


def test_what_breaks_the_ring_is_noticed() -> None:
    with mock.patch.object(KadRouter, "_on_change", return_value=None):  # nobody is told what they are now to hold
        outcome = run(NODES, 0, chosen=[])
    assert any("of its 20 nearest" in problem for problem in outcome.problems)
